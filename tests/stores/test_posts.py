"""What every adapter of the posts port does."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from feed.v1 import events_pb2

from mesh.errors import AlreadyExists, FailedPrecondition, NotFound, PermissionDenied
from stores.events.port import Event, Topic
from stores.posts.port import Engagement, IdempotencyKey, PostStore, StoredMedia, StoredPost
from stores.posts.sql import SqlPostStore
from stores.sql.database import Database
from tests.fixtures.sql import announced, fresh_id, fresh_ids

NOW = datetime.now(UTC)


@pytest.fixture
def posts(database: Database) -> PostStore:
    return SqlPostStore(database)


def a_post(author_id: int | None = None) -> StoredPost:
    return StoredPost(
        post_id=fresh_id(),
        author_id=author_id or fresh_id(),
        text="Первый 🏔\nline",
        tags=("alps", "café"),
        media=(StoredMedia("a/b.png", "image/png", 640, 480), StoredMedia("c", "video/mp4", 0, 0)),
        created_at=datetime.now(UTC),
    )


def posted(post: StoredPost) -> Event:
    message = events_pb2.PostEvent(
        action=events_pb2.PostEvent.ACTION_CREATED, post_id=post.post_id, author_id=post.author_id
    )
    return Event(Topic.POSTS, post.author_id, message)


def deleted(post: StoredPost) -> Event:
    message = events_pb2.PostEvent(
        action=events_pb2.PostEvent.ACTION_DELETED, post_id=post.post_id, author_id=post.author_id
    )
    return Event(Topic.POSTS, post.author_id, message)


def engaged(user_id: int) -> Event:
    return Event(Topic.ENGAGEMENTS, user_id, events_pb2.EngagementEvent(user_id=user_id))


async def published(posts: PostStore, author_id: int | None = None) -> StoredPost:
    post = a_post(author_id)
    return await posts.create(post, posted(post))


async def like_count(posts: PostStore, post: StoredPost) -> int:
    return (await posts.get([post.post_id]))[post.post_id].like_count


# -- creating -----------------------------------------------------------------------------------


async def test_a_created_post_is_read_back_whole_and_announced_once(
    posts: PostStore, database: Database
) -> None:
    post = a_post()
    assert await posts.create(post, posted(post)) == post
    assert await posts.get([post.post_id, fresh_id()]) == {post.post_id: post}
    assert await posts.authors([post.post_id, fresh_id()]) == {post.post_id: post.author_id}
    (record,) = await announced(database, post.author_id)
    assert record.topic == "feed.posts.v1"
    assert f'"post_id":"{post.post_id}"' in record.value.decode()
    assert record.headers["event_id"]


async def test_an_id_is_published_once(posts: PostStore, database: Database) -> None:
    post = await published(posts)
    with pytest.raises(AlreadyExists):
        await posts.create(post, posted(post))
    assert len(await announced(database, post.author_id)) == 1


async def test_repeating_an_idempotency_key_gives_the_earlier_post(
    posts: PostStore, database: Database
) -> None:
    first = a_post()
    again = a_post(first.author_id)
    key = IdempotencyKey("key", "same content")
    assert await posts.find_idempotent(first.author_id, key) is None
    assert await posts.create(first, posted(first), key) == first
    assert await posts.create(again, posted(again), key) == first
    assert await posts.find_idempotent(first.author_id, key) == first
    assert await posts.get([again.post_id]) == {}
    assert len(await announced(database, first.author_id)) == 1


async def test_keys_are_forgotten_when_they_are_old_unless_the_store_does_it_itself(
    posts: PostStore, database: Database
) -> None:
    first, again = a_post(), a_post()
    key = IdempotencyKey("key", "content")
    await posts.create(first, posted(first), key)
    now = datetime.now(UTC)
    await posts.forget_idempotency_keys(now - timedelta(hours=1))
    assert await posts.find_idempotent(first.author_id, key) == first
    forgotten = await posts.forget_idempotency_keys(now + timedelta(hours=1))
    assert (forgotten > 0) == database.is_sqlite
    if forgotten:
        assert await posts.find_idempotent(first.author_id, key) is None
        again = replace(again, author_id=first.author_id)
        assert await posts.create(again, posted(again), key) == again
    assert await posts.get([first.post_id]) == {first.post_id: first}


async def test_a_key_used_for_other_content_is_refused(posts: PostStore) -> None:
    first = a_post()
    await posts.create(first, posted(first), IdempotencyKey("key", "content"))
    other, changed = a_post(first.author_id), IdempotencyKey("key", "other content")
    with pytest.raises(FailedPrecondition):
        await posts.create(other, posted(other), changed)
    with pytest.raises(FailedPrecondition):
        await posts.find_idempotent(first.author_id, changed)


async def test_a_deleted_post_is_not_published_again_by_its_key(posts: PostStore) -> None:
    post = a_post()
    again = a_post(post.author_id)
    key = IdempotencyKey("key", "content")
    await posts.create(post, posted(post), key)
    await posts.delete(post.post_id, post.author_id, deleted(post))
    with pytest.raises(FailedPrecondition, match="deleted"):
        await posts.create(again, posted(again), key)


async def test_keys_of_different_authors_and_cases_are_different(posts: PostStore) -> None:
    first = a_post()
    for post, name in ((first, "key"), (a_post(), "key"), (a_post(first.author_id), "KEY")):
        assert await posts.create(post, posted(post), IdempotencyKey(name, "content")) == post


async def test_concurrent_creates_with_one_key_give_one_post(
    posts: PostStore, database: Database
) -> None:
    author_id = fresh_id()
    attempts = [a_post(author_id) for _ in range(20)]
    key = IdempotencyKey("key", "content")
    created = await asyncio.gather(*(posts.create(post, posted(post), key) for post in attempts))
    assert len({post.post_id for post in created}) == 1
    assert [post.post_id for post in await posts.by_author(author_id, None, 50)] == [
        created[0].post_id
    ]
    assert len(await announced(database, author_id)) == 1


async def test_bulk_passes_over_known_posts_and_announces_nothing(
    posts: PostStore, database: Database
) -> None:
    author_id = fresh_id()
    known = await published(posts, author_id)
    await posts.like(fresh_id(), known.post_id, NOW, engaged(1))
    added = [a_post(author_id) for _ in range(2500)]
    for _ in range(2):
        await posts.create_many([*added, known])
    assert await posts.get([post.post_id for post in added]) == {p.post_id: p for p in added}
    assert await like_count(posts, known) == 1
    assert len(await announced(database, author_id)) == 1


# -- deleting -----------------------------------------------------------------------------------


async def test_a_deleted_post_is_gone_with_its_likes(posts: PostStore, database: Database) -> None:
    post, reader = await published(posts), fresh_id()
    await posts.like(reader, post.post_id, NOW, engaged(reader))
    gone = await posts.delete(post.post_id, post.author_id, deleted(post))
    assert (gone.post_id, gone.media) == (post.post_id, post.media)
    assert await posts.get([post.post_id]) == {}
    assert await posts.authors([post.post_id]) == {}
    assert await posts.liked(reader, [post.post_id]) == set()
    assert await posts.recent_likes(reader, 10) == []
    assert len(await announced(database, post.author_id)) == 2


async def test_only_the_author_deletes_a_post(posts: PostStore, database: Database) -> None:
    post = await published(posts)
    with pytest.raises(PermissionDenied):
        await posts.delete(post.post_id, fresh_id(), deleted(post))
    assert post.post_id in await posts.get([post.post_id])
    assert len(await announced(database, post.author_id)) == 1


async def test_a_post_is_deleted_and_announced_as_deleted_once(
    posts: PostStore, database: Database
) -> None:
    post = await published(posts)
    outcomes = await asyncio.gather(
        *(posts.delete(post.post_id, post.author_id, deleted(post)) for _ in range(8)),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, NotFound) for outcome in outcomes) == 7
    records = await announced(database, post.author_id)
    assert [b"ACTION_DELETED" in record.value for record in records] == [False, True]


# -- lists --------------------------------------------------------------------------------------


async def test_an_authors_posts_come_newest_first_in_pages(posts: PostStore) -> None:
    author_id = fresh_id()
    mine = [await published(posts, author_id) for _ in range(5)]
    await published(posts)
    newest_first = mine[::-1]
    assert await posts.by_author(author_id, None, 2) == newest_first[:2]
    assert await posts.by_author(author_id, newest_first[1].post_id, 10) == newest_first[2:]
    assert await posts.by_author(fresh_id(), None, 10) == []


async def test_newest_ids_has_an_entry_for_every_author(posts: PostStore) -> None:
    authors = fresh_ids(250)
    written = [a_post(author_id) for _ in range(4) for author_id in authors[:200]]
    random.Random(1).shuffle(written)
    await posts.create_many(written)
    newest = await posts.newest_ids([*authors, authors[0]], 3)
    expected: dict[int, list[int]] = {author_id: [] for author_id in authors}
    for post in sorted(written, key=lambda post: -post.post_id):
        expected[post.author_id].append(post.post_id)
    assert newest == {author_id: ids[:3] for author_id, ids in expected.items()}
    assert await posts.newest_ids([], 3) == {}


async def test_pages_go_through_all_posts_in_the_order_of_ids(posts: PostStore) -> None:
    before = fresh_id()
    added = [a_post() for _ in range(5)]
    await posts.create_many(added[::-1])
    assert await posts.page(before, 3) == added[:3]
    assert (await posts.page(added[2].post_id, 100))[:2] == added[3:]


async def test_thousands_of_ids_are_looked_up_at_once(posts: PostStore) -> None:
    post = await published(posts)
    ids = [*fresh_ids(7500), post.post_id]
    assert await posts.get(ids) == {post.post_id: post}
    assert await posts.authors(ids) == {post.post_id: post.author_id}
    assert await posts.liked(fresh_id(), ids) == set()
    assert len(await posts.newest_ids(ids, 1)) == 7501


# -- likes --------------------------------------------------------------------------------------


async def test_a_like_counts_once_and_can_be_taken_back(
    posts: PostStore, database: Database
) -> None:
    post, other, reader = await published(posts), await published(posts), fresh_id()
    assert await posts.like(reader, post.post_id, NOW, engaged(reader))
    assert not await posts.like(reader, post.post_id, NOW, engaged(reader))
    assert await posts.liked(reader, [post.post_id, other.post_id]) == {post.post_id}
    assert await like_count(posts, post) == 1
    assert await posts.unlike(reader, post.post_id, engaged(reader))
    assert not await posts.unlike(reader, post.post_id, engaged(reader))
    assert await posts.liked(reader, [post.post_id]) == set()
    assert await like_count(posts, post) == 0
    assert len(await announced(database, reader)) == 2


async def test_a_post_that_is_not_there_cannot_be_liked(
    posts: PostStore, database: Database
) -> None:
    reader, nowhere = fresh_id(), fresh_id()
    with pytest.raises(NotFound):
        await posts.like(reader, nowhere, NOW, engaged(reader))
    with pytest.raises(NotFound):
        await posts.unlike(reader, nowhere, engaged(reader))
    assert await posts.liked(reader, [nowhere]) == set()
    assert await announced(database, reader) == []


async def test_concurrent_likes_are_counted_exactly(posts: PostStore, sql_url: str) -> None:
    post, readers = await published(posts), fresh_ids(50)
    # A second database object is what another process has.
    elsewhere = Database(sql_url)
    stores: Sequence[PostStore] = (posts, SqlPostStore(elsewhere))
    likes = [
        stores[n % 2].like(reader, post.post_id, NOW, engaged(reader))
        for n, reader in enumerate(readers + readers)
    ]
    assert sum(await asyncio.gather(*likes)) == 50
    assert await like_count(posts, post) == 50
    await asyncio.gather(*(stores[1].unlike(r, post.post_id, engaged(r)) for r in readers[:20]))
    assert await like_count(posts, post) == 30
    await elsewhere.close()


async def test_likes_racing_with_a_delete_leave_nothing_behind(posts: PostStore) -> None:
    post, readers = await published(posts), fresh_ids(20)
    likes = [posts.like(reader, post.post_id, NOW, engaged(reader)) for reader in readers]
    delete = posts.delete(post.post_id, post.author_id, deleted(post))
    outcomes = await asyncio.gather(*likes[:10], delete, *likes[10:], return_exceptions=True)
    assert all(
        outcome is True or isinstance(outcome, NotFound | StoredPost) for outcome in outcomes
    )
    for reader in readers:
        assert await posts.recent_likes(reader, 1) == []


async def test_bulk_likes_count_new_ones_and_pass_over_the_rest(posts: PostStore) -> None:
    first, second = await published(posts), await published(posts)
    readers, nowhere = fresh_ids(1500), fresh_id()
    await posts.like(readers[0], first.post_id, NOW, engaged(readers[0]))
    likes = [(reader, first.post_id, NOW) for reader in readers]
    likes += [(reader, second.post_id, NOW) for reader in readers[:7]]
    likes += [(readers[0], nowhere, NOW), likes[3]]
    for _ in range(2):
        await posts.like_many(likes)
    assert await like_count(posts, first) == 1500
    assert await like_count(posts, second) == 7
    assert await posts.liked(readers[0], [nowhere]) == set()


async def test_recent_likes_come_newest_first(posts: PostStore) -> None:
    reader, liked = fresh_id(), [await published(posts) for _ in range(4)]
    for age, post in enumerate(liked):
        await posts.like(reader, post.post_id, NOW - timedelta(hours=age), engaged(reader))
    assert await posts.recent_likes(reader, 3) == [
        Engagement(post.post_id, post.author_id, NOW - timedelta(hours=age))
        for age, post in enumerate(liked[:3])
    ]


async def test_pages_go_through_all_likes_in_order(posts: PostStore) -> None:
    one, two = fresh_ids(2)
    first, second = await published(posts), await published(posts)
    likes = [(one, first.post_id, NOW), (one, second.post_id, NOW), (two, first.post_id, NOW)]
    await posts.like_many(likes[::-1])
    assert await posts.likes_page((one, 0), 2) == likes[:2]
    assert (await posts.likes_page((one, second.post_id), 10))[:1] == likes[2:]
