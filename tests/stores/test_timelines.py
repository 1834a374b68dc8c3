"""Timelines: boxes that are always there, and lose no post while they are built."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

import pytest
from redis.asyncio import Redis

from stores.mailboxes.port import CAPACITY, Box, MailboxStore
from stores.mailboxes.redis import RedisMailboxStore
from stores.mailboxes.timelines import Timelines
from tests.fixtures.sql import fresh_id, fresh_ids


class Published:
    """The source of truth: posts by author. `before_answer` runs when it has read already."""

    def __init__(self, by_author: dict[int, list[int]]) -> None:
        self.by_author = by_author
        self.asked: list[int] = []
        self.before_answer: Callable[[], Awaitable[object]] | None = None

    async def newest_ids(self, author_ids: Sequence[int], per_author: int) -> dict[int, list[int]]:
        self.asked += author_ids
        answer = {
            author: sorted(self.by_author.get(author, []), reverse=True)[:per_author]
            for author in author_ids
        }
        if self.before_answer is not None:
            await self.before_answer()
        return answer


@pytest.fixture
def mailboxes(empty_redis: Redis) -> MailboxStore:
    return RedisMailboxStore(empty_redis)


async def test_authors_boxes_are_built_once_and_then_read(mailboxes: MailboxStore) -> None:
    posts = Published({1: [10, 30, 20], 2: [25]})
    timelines = Timelines(mailboxes, posts)
    for _ in range(2):
        recent = await timelines.recent_by_authors([1, 2, 3], per_author=2)
        assert recent == {1: [30, 20], 2: [25], 3: []}
    assert posts.asked == [1, 2, 3]
    assert await timelines.recent_by_authors([], 5) == {}


async def test_a_box_built_for_a_short_read_serves_a_longer_one(mailboxes: MailboxStore) -> None:
    timelines = Timelines(mailboxes, Published({1: [1, 2, 3, 4]}))
    assert await timelines.recent_by_authors([1], per_author=1) == {1: [4]}
    assert await timelines.recent_by_authors([1], per_author=9) == {1: [4, 3, 2, 1]}


async def test_only_the_missing_boxes_are_built(mailboxes: MailboxStore) -> None:
    posts = Published({1: [10], 2: [20]})
    timelines = Timelines(mailboxes, posts)
    await timelines.recent_by_authors([1], 5)
    await mailboxes.push([Box("authored", 1)], [11])
    assert await timelines.recent_by_authors([2, 1], 5) == {1: [11, 10], 2: [20]}
    assert posts.asked == [1, 2]


async def test_a_missing_mailbox_is_merged_from_the_followed_authors(
    mailboxes: MailboxStore,
) -> None:
    posts = Published({1: [10, 40], 2: [20, 30], 3: [99]})
    timelines = Timelines(mailboxes, posts)
    reader = fresh_id()
    assert await timelines.mailbox(reader, [1, 2], limit=3) == [40, 30, 20]
    assert await timelines.mailbox(reader, [], limit=9) == [40, 30, 20, 10]
    assert posts.asked == [1, 2]


async def test_who_follows_nobody_has_an_empty_mailbox_that_takes_pushes(
    mailboxes: MailboxStore,
) -> None:
    timelines = Timelines(mailboxes, Published({}))
    reader = fresh_id()
    assert await timelines.mailbox(reader, [], limit=5) == []
    assert await mailboxes.push([Box("mailbox", reader)], [7]) == 1
    assert await timelines.mailbox(reader, [], limit=5) == [7]


async def test_a_mailbox_of_many_authors_holds_the_newest_800(mailboxes: MailboxStore) -> None:
    authors = list(range(1, 101))
    every = fresh_ids(1_000)
    posts = Published({author: every[author - 1 :: 100] for author in authors})
    newest = await Timelines(mailboxes, posts).mailbox(fresh_id(), authors, limit=5_000)
    assert newest == every[: -CAPACITY - 1 : -1]


async def test_a_post_published_while_boxes_are_built_is_in_them(mailboxes: MailboxStore) -> None:
    posts = Published({1: [10]})
    timelines = Timelines(mailboxes, posts)
    reader = fresh_id()

    async def publish() -> None:
        # Committed after the source of truth was read, then pushed to what exists.
        posts.by_author[1].append(11)
        await mailboxes.push([Box("authored", 1), Box("mailbox", reader)], [11])

    posts.before_answer = publish
    await timelines.mailbox(reader, [1], limit=5)
    posts.before_answer = None
    assert await timelines.mailbox(reader, [1], limit=5) == [11, 10]
    assert await timelines.recent_by_authors([1], 5) == {1: [11, 10]}


async def test_a_builder_that_dies_leaves_nothing_that_readers_see(
    mailboxes: MailboxStore,
) -> None:
    posts = Published({1: [10]})
    timelines = Timelines(mailboxes, posts)

    async def die() -> None:
        raise ConnectionResetError

    posts.before_answer = die
    with pytest.raises(ConnectionResetError):
        await timelines.mailbox(1, [1], limit=5)
    posts.before_answer = None
    assert await timelines.mailbox(1, [1], limit=5) == [10]


async def test_concurrent_rebuilds_agree(mailboxes: MailboxStore) -> None:
    timelines = Timelines(mailboxes, Published({author: [author] for author in range(1, 60)}))
    reader = fresh_id()
    pages = await asyncio.gather(
        *(timelines.mailbox(reader, list(range(1, 60)), limit=5) for _ in range(8))
    )
    assert pages == [[59, 58, 57, 56, 55]] * 8
    assert len(await timelines.mailbox(reader, [], limit=CAPACITY)) == 59
