"""The media worker deletes what no post shows, and nothing else."""

import os
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from feed.v1 import events_pb2

from stores.events.port import Event, Topic
from stores.leases.sql import SqlLeases
from stores.media.folder import FolderMediaStore
from stores.media.images import new_key
from stores.media.s3 import UPLOADS
from stores.posts.port import StoredMedia, StoredPost
from stores.posts.sql import SqlPostStore
from stores.sql.database import Database
from tests.fixtures.buckets import fresh_bucket, opened
from tests.fixtures.sql import fresh_id
from tests.fixtures.stack import Stack
from workers.media import OLD_S, MediaCleaner

ALL = -3600.0


@pytest.fixture
def media(tmp_path: Path) -> FolderMediaStore:
    return FolderMediaStore(tmp_path, "http://feed.test")


@pytest.fixture
def cleaner(media: FolderMediaStore, database: Database) -> MediaCleaner:
    return MediaCleaner(media, None, SqlPostStore(database), SqlLeases(database))


async def stored(media: FolderMediaStore, post_id: int) -> str:
    key = new_key(post_id, ".png")
    await media.put(key, b"picture", "image/png")
    return key


async def published(database: Database, media: FolderMediaStore, count: int = 1) -> list[str]:
    """The keys of a post's media."""
    post_id = fresh_id()
    keys = [await stored(media, post_id) for _ in range(count)]
    shown = tuple(StoredMedia(key, "image/png", 1, 1) for key in keys)
    post = StoredPost(post_id, fresh_id(), "text", (), shown, datetime.now(UTC))
    await SqlPostStore(database).create(post, event(post))
    return keys


def event(post: StoredPost) -> Event:
    message = events_pb2.PostEvent(post_id=post.post_id, author_id=post.author_id)
    return Event(Topic.POSTS, post.author_id, message)


async def kept(media: FolderMediaStore) -> set[str]:
    stored = media.keys()
    return {key async for key in stored}


async def test_what_a_post_shows_stays_and_what_none_shows_goes(
    cleaner: MediaCleaner, media: FolderMediaStore, database: Database
) -> None:
    shown = await published(database, media, count=2)
    orphan = await stored(media, fresh_id())
    # As after a second attempt of the same post: the post is there, with another object.
    unused = new_key(int(shown[0][35:51], 16), ".png")
    await media.put(unused, b"picture", "image/png")
    assert await cleaner.clean(ALL) == 2
    assert await kept(media) == set(shown)
    assert orphan not in shown


async def test_what_is_new_may_be_a_post_on_its_way_and_stays(
    cleaner: MediaCleaner, media: FolderMediaStore, tmp_path: Path
) -> None:
    new, old = await stored(media, fresh_id()), await stored(media, fresh_id())
    a_day_ago = time.time() - OLD_S - 60
    os.utime(tmp_path / old, (a_day_ago, a_day_ago))
    assert await cleaner.clean() == 1
    assert await kept(media) == {new}


async def test_an_object_that_does_not_name_its_post_stays(
    cleaner: MediaCleaner, media: FolderMediaStore
) -> None:
    key = f"ab/ab{'0' * 30}.png"
    await media.put(key, b"picture", "image/png")
    assert await cleaner.clean(ALL) == 0
    assert await kept(media) == {key}


async def test_another_database_does_not_take_all_media_with_it(
    cleaner: MediaCleaner,
    media: FolderMediaStore,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    shown = await published(database, media, count=3)
    orphans = {await stored(media, fresh_id()) for _ in range(100)}
    assert await cleaner.clean(ALL) == 0
    assert await kept(media) == {*shown, *orphans}
    assert "belong to no post of this database" in caplog.text


async def test_more_objects_than_are_asked_for_at_once(
    cleaner: MediaCleaner, media: FolderMediaStore, database: Database
) -> None:
    shown = [key for _ in range(130) for key in await published(database, media, count=4)]
    orphans = {await stored(media, fresh_id()) for _ in range(99)}
    assert await cleaner.clean(ALL) == len(orphans)
    assert await kept(media) == set(shown)


@pytest.fixture
async def bucket(stack: Stack) -> AsyncIterator[str]:
    async with fresh_bucket(await stack.url("minio")) as url:
        yield url


@pytest.mark.stack
async def test_uploads_that_no_post_took_go(bucket: str, database: Database) -> None:
    async with opened(bucket) as s3, httpx.AsyncClient() as client:
        cleaner = MediaCleaner(s3, s3, SqlPostStore(database), SqlLeases(database))
        form = s3.form(
            f"{UPLOADS}abc.mp4", "video/mp4", 99, datetime.now(UTC) + timedelta(minutes=5)
        )
        answer = await client.post(form.url, data=dict(form.fields), files={"file": ("x", b"1")})
        assert answer.status_code == 204
        await s3.put(new_key(fresh_id(), ".png"), b"picture", "image/png")
        assert await cleaner.clean() == 0
        assert await cleaner.clean(ALL) == 2
        assert [each async for each in s3.stale(ALL)] == []
