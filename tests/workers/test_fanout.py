"""Posts reach the mailboxes they belong in, and no others."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
from feed.v1.events_pb2 import GraphEvent

from stores.events.port import Event, Record
from stores.mailboxes.port import Box, MailboxStore, Progress
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.workers.backstage import Backstage, graph_event, post_event
from workers.consumer import Delivery
from workers.fanout import Fanout


class Watched:
    """A mailbox store that calls `before_push` before it pushes to followers, and notes pages."""

    def __init__(
        self, store: MailboxStore, before_push: Callable[[int], Awaitable[None]] | None = None
    ) -> None:
        self._store = store
        self._before_push = before_push
        self.pages: list[list[int]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def push(self, boxes: Sequence[Box], post_ids: Sequence[int]) -> int:
        if boxes[0].kind == "mailbox":
            if self._before_push is not None:
                await self._before_push(len(self.pages))
            self.pages.append([box.owner_id for box in boxes])
        return await self._store.push(boxes, post_ids)


class Killed(BaseException):
    """The process ends here."""


def fanout(
    backstage: Backstage,
    mailboxes: MailboxStore | None = None,
    push_limit: int = 1_000,
    page: int = 10,
) -> Fanout:
    stores = backstage.stores
    return Fanout(stores.posts(), stores.graph(), mailboxes or stores.mailboxes(), push_limit, page)


def delivery(event: Event) -> Delivery:
    record = Record(event.topic, str(event.key), b"", "0-1")
    return Delivery(record, event.message)  # type: ignore[arg-type]


async def followers_of(backstage: Backstage, author_id: int, count: int) -> list[int]:
    readers = fresh_ids(count)
    await backstage.stores.graph().follow_many([(reader, author_id) for reader in readers])
    await backstage.open_mailboxes(*readers)
    return readers


async def test_a_post_reaches_the_open_mailboxes_of_followers_and_only_those(
    backstage: Backstage,
) -> None:
    author, follower, away, stranger = fresh_ids(4)
    await backstage.open_mailboxes(follower, stranger)
    await backstage.stores.graph().follow_many([(follower, author), (away, author)])
    await backstage.stores.mailboxes().finish_build(Box("authored", author), [])
    async with backstage.running("relay", "fanout"):
        post_id = await backstage.post(author, "hello")
        await backstage.settled("fanout")
    assert await backstage.mailbox(follower) == [post_id]
    assert await backstage.mailbox(stranger) == []
    assert await backstage.mailbox(away) is None
    assert await backstage.authored(author) == [post_id]


async def test_a_fan_out_killed_midway_goes_on_where_it_stopped(backstage: Backstage) -> None:
    author = fresh_id()
    readers = await followers_of(backstage, author, 95)
    post_id = await backstage.post(author, "to all")
    event = delivery(post_event(post_id, author))

    async def kill_at_page_4(pages: int) -> None:
        if pages == 4:
            raise Killed

    store = backstage.stores.mailboxes()
    with pytest.raises(Killed):
        await fanout(backstage, Watched(store, kill_at_page_4)).handle([event])
    assert await store.progress(f"fanout:{post_id}") == Progress(after=readers[39])

    second = Watched(store)
    await fanout(backstage, second).handle([event])
    assert [reader for page in second.pages for reader in page] == readers[40:]
    assert [await backstage.mailbox(reader) for reader in readers] == [[post_id]] * 95
    assert await store.progress(f"fanout:{post_id}") is None


async def test_an_author_above_the_limit_is_marked_and_not_pushed(backstage: Backstage) -> None:
    author = fresh_id()
    readers = await followers_of(backstage, author, 6)
    graph = backstage.stores.graph()
    post_id = await backstage.post(author, "to a crowd")

    await fanout(backstage, push_limit=6).handle([delivery(post_event(post_id, author))])
    assert not await graph.is_pulled(author)
    assert await backstage.mailbox(readers[0]) == [post_id]

    next_id = await backstage.post(author, "to more")
    await fanout(backstage, push_limit=5).handle([delivery(post_event(next_id, author))])
    assert await graph.is_pulled(author)
    assert await backstage.mailbox(readers[0]) == [post_id]
    # Also when followers leave: readers find these posts by pulling, and only so.
    last_id = await backstage.post(author, "to fewer")
    await fanout(backstage, push_limit=100).handle([delivery(post_event(last_id, author))])
    assert await backstage.mailbox(readers[0]) == [post_id]


async def test_a_deleted_post_leaves_every_box(backstage: Backstage) -> None:
    author = fresh_id()
    readers = await followers_of(backstage, author, 25)
    await backstage.stores.mailboxes().finish_build(Box("authored", author), [])
    keep_id = await backstage.post(author, "stays")
    post_id = await backstage.post(author, "goes")
    worker = fanout(backstage)
    await worker.handle(
        [delivery(post_event(keep_id, author)), delivery(post_event(post_id, author))]
    )
    assert await backstage.mailbox(readers[24]) == [post_id, keep_id]

    await backstage.delete(post_id, author)
    await worker.handle([delivery(post_event(post_id, author))])
    assert [await backstage.mailbox(reader) for reader in readers] == [[keep_id]] * 25
    assert await backstage.authored(author) == [keep_id]


async def test_a_post_deleted_while_it_is_pushed_does_not_stay(backstage: Backstage) -> None:
    author = fresh_id()
    readers = await followers_of(backstage, author, 25)
    post_id = await backstage.post(author, "short-lived")

    async def delete_at_page_1(pages: int) -> None:
        if pages == 1:
            await backstage.delete(post_id, author)

    store = Watched(backstage.stores.mailboxes(), delete_at_page_1)
    await fanout(backstage, store).handle([delivery(post_event(post_id, author))])
    assert [await backstage.mailbox(reader) for reader in readers] == [[]] * 25


async def test_following_brings_the_author_s_recent_posts_and_unfollowing_takes_them(
    backstage: Backstage,
) -> None:
    author, other, reader = fresh_ids(3)
    await backstage.open_mailboxes(reader)
    async with backstage.running("relay", "fanout"):
        await backstage.follow(reader, other)
        others_post = await backstage.post(other, "from the other")
        posts = [await backstage.post(author, f"number {n}") for n in range(3)]
        await backstage.follow(reader, author)
        await backstage.settled("fanout")
        assert await backstage.mailbox(reader) == [*reversed(posts), others_post]
        await backstage.unfollow(reader, author)
        await backstage.settled("fanout")
    assert await backstage.mailbox(reader) == [others_post]


async def test_following_opens_no_mailbox(backstage: Backstage) -> None:
    author, reader = fresh_ids(2)
    await backstage.post(author, "hello")
    await backstage.follow(reader, author)
    event = graph_event(reader, author, GraphEvent.ACTION_FOLLOWED)
    await fanout(backstage).handle([delivery(event)])
    assert await backstage.mailbox(reader) is None


async def test_an_event_overtaken_by_the_present_does_what_is_true_now(
    backstage: Backstage,
) -> None:
    author, reader = fresh_ids(2)
    await backstage.open_mailboxes(reader)
    await backstage.post(author, "hello")
    followed = graph_event(reader, author, GraphEvent.ACTION_FOLLOWED)
    await fanout(backstage).handle([delivery(followed)])
    assert await backstage.mailbox(reader) == []


async def test_a_block_clears_both_mailboxes(backstage: Backstage) -> None:
    one, two = fresh_ids(2)
    await backstage.open_mailboxes(one, two)
    async with backstage.running("relay", "fanout"):
        await backstage.follow(one, two)
        await backstage.follow(two, one)
        by_one = await backstage.post(one, "by one")
        by_two = await backstage.post(two, "by two")
        await backstage.settled("fanout")
        assert await backstage.mailbox(one) == [by_two]
        assert await backstage.mailbox(two) == [by_one]
        await backstage.block(one, two)
        await backstage.settled("fanout")
    assert await backstage.mailbox(one) == []
    assert await backstage.mailbox(two) == []


async def test_a_new_post_is_backfilled_to_whoever_follows_while_it_is_pushed(
    backstage: Backstage,
) -> None:
    late, author = fresh_ids(2)
    await followers_of(backstage, author, 25)
    await backstage.open_mailboxes(late)
    await backstage.stores.mailboxes().finish_build(Box("authored", author), [])
    post_id = await backstage.post(author, "hello")

    async def follow_at_page_2(pages: int) -> None:
        # The pages passed the late follower's id before they followed.
        if pages == 2:
            await backstage.follow(late, author)
            event = graph_event(late, author, GraphEvent.ACTION_FOLLOWED)
            await fanout(backstage).handle([delivery(event)])

    store = Watched(backstage.stores.mailboxes(), follow_at_page_2)
    await fanout(backstage, store).handle([delivery(post_event(post_id, author))])
    assert await backstage.mailbox(late) == [post_id]
