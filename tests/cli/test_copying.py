"""A copied installation has everything, can be repeated, and what differs is told."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from feed.v1 import events_pb2
from sqlalchemy import make_url

from cli.copying import compare, copy
from cli.environments import settings_of
from cli.format import FollowLine, ImpressionLine, LikeLine, MediaItem, PostLine, UserLine
from local.embedded import backends
from mesh.errors import FailedPrecondition, InvalidArgument, Unavailable
from mesh.settings import Settings
from stores.events.codec import encode
from stores.events.port import Event, Topic
from stores.mailboxes.port import Box
from tests.cli.conftest import Installation, installed, silent
from tests.cli.test_importing import picture, unit
from tests.fixtures.sql import drop_tidb, new_tidb, rendered
from tests.fixtures.stack import Stack
from tests.fixtures.valkey import free_port

NOW = datetime.now(UTC)
KINDS = {
    "users": 20, "follows": 19, "blocks": 2, "pulled authors": 1, "posts": 30, "likes": 20,
    "impressions": 20, "media": 10, "vectors": 30,
}  # fmt: skip


@pytest.fixture
async def full(installation: Installation, tmp_path: Path) -> Installation:
    """An installation with some of everything."""
    picture(tmp_path / "a.jpg")
    names = [f"reader{n}" for n in range(20)]
    file = installation.write(
        *(UserLine(id=name, username=name, password="correct horse") for name in names),
        *(FollowLine(follower=name, author=names[0]) for name in names[1:]),
        *(
            PostLine(
                id=f"post{n}",
                author=names[n % 7],
                text=f"Überlegung {n} 🚲",
                tags=("thoughts",),
                created_at=NOW - timedelta(minutes=n),
                media=(MediaItem(file="a.jpg"),) if n % 3 == 0 else (),
                embedding=unit(n).tolist(),
            )
            for n in range(30)
        ),
        *(LikeLine(user=name, post=f"post{n}", at=NOW) for n, name in enumerate(names)),
        *(
            ImpressionLine(user=name, post=f"post{n}", at=NOW, dwell_ms=n, position=n)
            for n, name in enumerate(names)
        ),
    )
    await installation.load(file)
    assert installation.bad == []
    users = await installation.stores.users().page(0, 3)
    one, other, third = (user.user_id for user in users)
    await installation.stores.graph().block_many([(one, third), (third, other)])
    await installation.stores.graph().mark_pulled(one)
    return installation


@asynccontextmanager
async def empty(folder: Path, sql_url: str | None = None) -> AsyncIterator[Installation]:
    """Another installation with backends of its own, but for SQL where that is given."""
    port = free_port()
    url = f"redis://127.0.0.1:{port}/0"
    settings = Settings(data_dir=folder, valkey_port=port, redis_url=url, events_url=url)
    if sql_url is not None:
        settings = settings.model_copy(update={"sql_url": sql_url})
    async with backends(settings), installed(folder, settings) as other:
        yield other


async def copied(source: Installation, target: Installation) -> dict[str, int]:
    """Copies; gives the rows of each kind, which are the same on both sides."""
    state = target.folder / "copy.json"
    compared = await copy(source.stores, target.stores, target.settings, state, silent())
    assert [each.kind for each in compared if not each.is_same] == []
    assert not state.exists()
    return {each.kind: each.there.count for each in compared}


async def check_everything_is_copied(full: Installation, other: Installation) -> None:
    assert await copied(full, other) == KINDS
    # Again it changes nothing.
    assert await copied(full, other) == KINDS
    posts = await full.stores.posts().page(0, 100)
    assert await other.stores.posts().page(0, 100) == posts
    assert sum(post.like_count for post in posts) == 20
    login = await other.stores.users().credentials("READER3")
    assert login == await full.stores.users().credentials("reader3")
    assert login is not None
    assert login.password_hash is not None
    # What is derived is there, too.
    features = await other.stores.feature_cache().posts([post.post_id for post in posts])
    assert all(each is not None for each in features)
    [authored] = await other.stores.mailboxes().newest([Box("authored", posts[0].author_id)], 10)
    assert authored is None  # nobody has asked for it; it is built at the first read


async def test_everything_is_copied_and_may_be_copied_again(
    full: Installation, tmp_path: Path
) -> None:
    async with empty(tmp_path / "other") as other:
        await check_everything_is_copied(full, other)


async def test_what_differs_is_told(full: Installation, tmp_path: Path) -> None:
    async with empty(tmp_path / "other") as other:
        await copied(full, other)
        store = other.stores
        [first, second, *_] = await store.posts().page(0, 100)
        with_media = next(p for p in await store.posts().page(0, 100) if p.media)

        async def different() -> set[str]:
            compared = await compare(full.stores, store, silent())
            return {each.kind for each in compared if not each.is_same}

        await store.media().put(with_media.media[0].key, b"other bytes", "image/jpeg")
        assert await different() == {"media"}
        [user, *_] = await store.users().page(0, 1)
        await store.graph().follow_many([(user.user_id, 12345)])
        assert await different() == {"media", "follows"}
        await store.vectors().delete([second.post_id])
        assert await different() == {"media", "follows", "vectors"}
        event = Event(Topic.POSTS, first.author_id, events_pb2.PostEvent())
        await store.posts().delete(first.post_id, first.author_id, event)
        assert {"media", "follows", "vectors", "posts"} <= await different()


async def test_a_copy_that_was_cut_off_goes_on(
    full: Installation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with empty(tmp_path / "other") as other:
        state = other.folder / "copy.json"
        store = type(other.stores.posts())
        like_many, calls = store.like_many, 0

        async def fail(*_: object) -> None:
            raise Unavailable("The database does not answer.")

        monkeypatch.setattr(store, "like_many", fail)
        with pytest.raises(Unavailable):
            await copy(full.stores, other.stores, other.settings, state, silent())
        assert state.exists()
        monkeypatch.setattr(store, "like_many", like_many)

        create_many = store.create_many

        async def counted(self: object, posts: object) -> None:
            nonlocal calls
            calls += 1
            await create_many(self, posts)  # type: ignore[arg-type]

        monkeypatch.setattr(store, "create_many", counted)
        assert await copied(full, other) == KINDS
        # The posts had arrived.
        assert calls == 0


async def test_events_that_wait_are_not_left_behind(full: Installation, tmp_path: Path) -> None:
    waiting = encode(Event(Topic.GRAPH, 1, events_pb2.GraphEvent(user_id=1)), "an id")
    await full.stores.outbox().add([waiting])
    async with empty(tmp_path / "other") as other:
        with pytest.raises(FailedPrecondition):
            await copied(full, other)


@pytest.mark.stack
async def test_everything_is_copied_to_tidb(
    full: Installation, tmp_path: Path, stack: Stack
) -> None:
    made = await new_tidb(make_url(await stack.url("tidb")))
    async with empty(tmp_path / "other", sql_url=rendered(made)) as other:
        await check_everything_is_copied(full, other)
    await drop_tidb(made)


async def test_environments_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEED_SQL_URL", "mysql+aiomysql://elsewhere/feed")
    assert (await settings_of("embedded")).sql_url.startswith("sqlite")
    file = tmp_path / "there.env"
    file.write_text("FEED_SQL_URL=mysql+aiomysql://there/feed\nOTHER=1\n")
    assert (await settings_of(str(file))).sql_url == "mysql+aiomysql://there/feed"
    with pytest.raises(InvalidArgument):
        await settings_of("nowhere")
