"""What is TiDB's own: keys, retries, cut-off commits, the outbox's order, restarts, spans."""

import asyncio
import random
import socket
import traceback
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from feed.v1 import events_pb2
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import insert, make_url, select, text, update
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh import deadlines, telemetry
from mesh.errors import AlreadyExists, Unavailable
from mesh.settings import Settings
from stack.daemon import Daemon
from stack.place import Place, Port
from stack.servers import tidb as tidb_server
from stores.events.codec import decode
from stores.events.port import Event, OutgoingRecord, Record, Topic
from stores.graph.sql import SqlGraphStore
from stores.outbox.sql import SqlOutbox, append
from stores.posts.port import IdempotencyKey, StoredPost
from stores.posts.sql import SqlPostStore
from stores.sql.database import Database, beyond
from stores.sql.migrate import migrate
from stores.sql.tables import follows, leases, pulled_authors
from stores.users.port import User
from stores.users.sql import SqlUserStore
from tests.eventually import eventually
from tests.fixtures.sql import announced, drop_tidb, fresh_id, fresh_ids, new_tidb, rendered
from tests.fixtures.stack import Stack
from tests.fixtures.valkey import free_port

pytestmark = pytest.mark.stack


@pytest_asyncio.fixture(scope="session")
async def url(stack: Stack) -> AsyncIterator[str]:
    """The URL of a migrated database of this process's own."""
    made = await new_tidb(make_url(await stack.url("tidb")))
    await migrate(rendered(made))
    yield rendered(made)
    await drop_tidb(made)


@pytest_asyncio.fixture(scope="session")
async def database(url: str) -> AsyncIterator[Database]:
    db = Database(url)
    yield db
    await db.close()


async def rows(db: Database, statement: str, **values: Any) -> list[Any]:
    async with db.read(30) as connection:
        return list(await connection.execute(text(statement), values))


def a_post(author_id: int | None = None) -> StoredPost:
    return StoredPost(fresh_id(), author_id or fresh_id(), "hi 🏔", (), (), datetime.now(UTC))


def posted(post: StoredPost) -> Event:
    return Event(
        Topic.POSTS,
        post.author_id,
        events_pb2.PostEvent(
            action=events_pb2.PostEvent.ACTION_CREATED,
            post_id=post.post_id,
            author_id=post.author_id,
        ),
    )


# -- schema -------------------------------------------------------------------------------------


async def test_processes_may_migrate_at_once_and_after_one_was_cut_off(stack: Stack) -> None:
    made = await new_tidb(make_url(await stack.url("tidb")))
    await asyncio.gather(*(migrate(rendered(made)) for _ in range(3)))
    db = Database(rendered(made))

    async def undo_a_part(connection: AsyncConnection) -> None:
        # As if a process had died in the middle: DDL is not rolled back.
        await connection.execute(text("DELETE FROM alembic_version"))
        await connection.execute(text("DROP TABLE leases, impressions"))
        await connection.execute(text("ALTER TABLE blocks DROP INDEX ix_blocks_target"))

    await db.write(undo_a_part)
    await migrate(rendered(made))
    tables = {name for (name,) in await rows(db, "SHOW TABLES")}
    assert {"leases", "impressions"} <= tables
    assert await rows(db, "SHOW INDEX FROM blocks WHERE Key_name = 'ix_blocks_target'")
    await db.close()
    await drop_tidb(made)


async def test_rows_that_come_in_order_are_scattered_and_others_are_clustered(
    database: Database,
) -> None:
    found = await rows(
        database,
        "SELECT table_name, tidb_pk_type, tidb_row_id_sharding_info"
        " FROM information_schema.tables WHERE table_schema = DATABASE()",
    )
    kinds = {name: (kind, sharding) for name, kind, sharding in found}
    for name in ("posts", "outbox"):
        assert kinds[name] == ("NONCLUSTERED", "SHARD_BITS=4")
    for name in ("users", "likes", "follows", "blocks", "idempotency_keys", "impressions"):
        assert kinds[name][0] == "CLUSTERED"


async def test_idempotency_keys_end_after_a_day(database: Database, stack: Stack, url: str) -> None:
    posts, old, new = SqlPostStore(database), a_post(), a_post()
    key = IdempotencyKey("key", "content")
    for post in (old, new):
        await posts.create(post, posted(post), key)

    async def age(connection: AsyncConnection) -> None:
        await connection.execute(
            text(
                "UPDATE idempotency_keys SET created_at = NOW() - INTERVAL 25 HOUR"
                " WHERE author_id = :author_id"
            ),
            {"author_id": old.author_id},
        )

    await database.write(age)
    # It would come by itself within the hour.
    status = (await stack.daemon("tidb")).server.ports[1]
    async with httpx.AsyncClient() as client:
        path = f"test/ttl/trigger/{make_url(url).database}/idempotency_keys"
        answer = await client.post(f"http://127.0.0.1:{status}/{path}")
        assert answer.status_code == 200, answer.text

    async def is_gone() -> bool:
        return await posts.find_idempotent(old.author_id, key) is None

    assert await eventually(is_gone, within_s=90, every_s=0.5)
    assert await posts.find_idempotent(new.author_id, key) == new


async def test_a_page_of_many_followers_is_a_walk_along_an_index(database: Database) -> None:
    author, followers = fresh_id(), fresh_ids(100_000)
    graph = SqlGraphStore(database)
    await graph.follow_many([(follower, author) for follower in followers])
    found: list[int] = []
    while page := await graph.followers_page(author, found[-1] if found else 0, 10_000):
        found += page
    assert found == followers
    plan = await rows(
        database,
        "EXPLAIN ANALYZE SELECT follower_id FROM follows WHERE author_id = :author_id"
        " AND follower_id > :after ORDER BY follower_id LIMIT 1000",
        author_id=author,
        after=followers[50_000],
    )
    said = "\n".join(map(str, plan))
    assert "ix_follows_author" in said
    assert not any(word in said for word in ("FullScan", "Sort", "TopN")), said
    # Of 50,000 that follow, it reads a page, and not much more: TiDB reads in batches.
    assert max(int(float(row.actRows)) for row in plan) <= 5_000, said


async def test_a_page_of_pairs_is_a_walk_along_an_index(database: Database) -> None:
    graph, follower = SqlGraphStore(database), fresh_id()
    await graph.follow_many([(follower, author) for author in range(1, 20_001)])
    pair = follows.c.follower_id, follows.c.author_id
    query = select(*pair).where(beyond(*pair, (follower, 10_000))).order_by(*pair).limit(1000)
    said = query.compile(dialect=mysql.dialect(), compile_kwargs={"literal_binds": True})
    plan = await rows(database, f"EXPLAIN ANALYZE {said}")
    assert not any(word in str(plan) for word in ("FullScan", "Sort", "TopN")), plan
    assert (await graph.follows_page((follower, 10_000), 2)) == [
        (follower, 10_001),
        (follower, 10_002),
    ]


# -- transactions that are tried again ----------------------------------------------------------


async def test_a_deadlock_is_solved_by_trying_again(database: Database) -> None:
    first, second = fresh_ids(2)
    names = {number: f"test:{number}" for number in (first, second)}

    async def prepare(connection: AsyncConnection) -> None:
        await connection.execute(
            insert(leases),
            [{"name": name, "holder": "", "expires_at_ms": 0} for name in names.values()],
        )

    await database.write(prepare)
    attempts: Counter[int] = Counter()
    both_have_one = asyncio.Barrier(2)

    async def take(one: int, other: int) -> None:
        async def work(connection: AsyncConnection) -> None:
            attempts[one] += 1
            for number in (one, other):
                await connection.execute(
                    update(leases)
                    .where(leases.c.name == names[number])
                    .values(expires_at_ms=leases.c.expires_at_ms + 1)
                )
                if number == one and attempts[one] == 1:
                    await both_have_one.wait()

        await database.write(work, 30)

    await asyncio.gather(take(first, second), take(second, first))
    assert sum(attempts.values()) == 3
    counted = await rows(
        database, f"SELECT expires_at_ms FROM leases WHERE name IN {tuple(names.values())}"
    )
    assert [tuple(row) for row in counted] == [(2,), (2,)]


async def test_a_connection_lost_before_the_commit_is_replaced(database: Database) -> None:
    # Each attempt has a row of its own, because a lost one's lock may outlive it by 20 seconds.
    numbers, attempts = fresh_ids(2), 0

    async def work(connection: AsyncConnection) -> None:
        nonlocal attempts
        attempts += 1
        await connection.execute(insert(pulled_authors), {"author_id": numbers[attempts - 1]})
        if attempts == 1:
            own = await connection.scalar(text("SELECT CONNECTION_ID()"))
            await rows(database, f"KILL TIDB {own}")
            while True:
                await connection.scalar(text("SELECT SLEEP(0.01)"))

    await database.write(work, 30)
    assert attempts == 2
    graph = SqlGraphStore(database)
    assert [await graph.is_pulled(number) for number in numbers] == [False, True]


async def test_after_a_commit_without_an_answer_the_callers_repeat_is_harmless(url: str) -> None:
    async with cutting_proxy(url) as (through, cut):
        db = Database(through)
        posts, post = SqlPostStore(db), a_post()
        key = IdempotencyKey("key", "content")
        again = replace(post, post_id=fresh_id())
        cut.set()
        with pytest.raises(Unavailable):
            await posts.create(post, posted(post), key)
        assert not cut.is_set()
        # It was committed, which nobody could know; the repeat finds it.
        assert (await posts.create(again, posted(again), key)).post_id == post.post_id
        assert await posts.get([again.post_id]) == {}
        assert len(await announced(db, post.author_id)) == 1

        cut.set()
        with pytest.raises(Unavailable):
            await posts.like(7, post.post_id, datetime.now(UTC), posted(post))
        await posts.like(7, post.post_id, datetime.now(UTC), posted(post))
        assert (await posts.get([post.post_id]))[post.post_id].like_count == 1
        assert len(await announced(db, post.author_id)) == 2
        await db.close()


@asynccontextmanager
async def cutting_proxy(url: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A way to the server that is cut once after each setting of the event: the next COMMIT
    arrives, its answer does not."""
    server, cut = make_url(url), asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(server.host, server.port)

        async def forth() -> None:
            while data := await reader.read(65536):
                if data.endswith(b"\x03COMMIT") and cut.is_set():
                    cut.clear()
                    answers.cancel()
                    back.write(data)
                    await there.read(65536)
                    return
                back.write(data)

        async def answer() -> None:
            while data := await there.read(65536):
                writer.write(data)

        answers = asyncio.create_task(answer())
        with suppress(OSError, asyncio.CancelledError):
            await forth()
        answers.cancel()
        writer.close()
        back.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
        port = proxy.sockets[0].getsockname()[1]
        yield rendered(server.set(host="127.0.0.1", port=port)), cut


# -- the outbox ---------------------------------------------------------------------------------


@dataclass
class Log:
    """Where a relay of the test publishes to."""

    records: list[OutgoingRecord]

    def of(self, key: int) -> list[OutgoingRecord]:
        return [record for record in self.records if record.key == str(key)]


@pytest_asyncio.fixture
async def own_url(stack: Stack) -> AsyncIterator[str]:
    """The URL of a database of the test's own, because every row of an outbox is everybody's."""
    made = await new_tidb(make_url(await stack.url("tidb")))
    await migrate(rendered(made))
    yield rendered(made)
    await drop_tidb(made)


@pytest_asyncio.fixture
async def own(own_url: str) -> AsyncIterator[Database]:
    db = Database(own_url)
    yield db
    await db.close()


@asynccontextmanager
async def relaying(db: Database) -> AsyncIterator[Log]:
    """Carries the outbox away, as the relay does, until it is empty at the end of the block."""
    outbox, log, done = SqlOutbox(db), Log([]), asyncio.Event()

    async def relay() -> None:
        while True:
            was_done = done.is_set()
            waiting = await outbox.pending(20)
            log.records += [row.record for row in waiting]
            await outbox.published([row.row_id for row in waiting])
            if was_done and not waiting:
                return

    task = asyncio.create_task(relay())
    yield log
    done.set()
    await task


async def test_a_row_that_commits_late_is_relayed_late_and_not_lost(own: Database) -> None:
    early, late = a_post(), a_post()
    has_number, may_commit = asyncio.Event(), asyncio.Event()

    async def slow(connection: AsyncConnection) -> None:
        await append(connection, posted(early))
        has_number.set()
        await may_commit.wait()

    slower = asyncio.create_task(own.write(slow, 60))
    await has_number.wait()
    async with relaying(own) as log:
        await SqlPostStore(own).create(late, posted(late))
        await eventually(lambda: log.of(late.author_id))
        assert not log.of(early.author_id)
        may_commit.set()
        await slower
        await eventually(lambda: log.of(early.author_id))
    assert len(log.records) == 2


async def test_events_of_one_key_are_relayed_in_the_order_of_their_changes(
    own: Database, own_url: str
) -> None:
    elsewhere = Database(own_url)
    stores = [SqlPostStore(own), SqlPostStore(elsewhere)]
    post, readers = a_post(), fresh_ids(6)
    await stores[0].create(post, posted(post))
    actions = events_pb2.EngagementEvent

    def engaged(reader: int, action: events_pb2.EngagementEvent.Action.ValueType) -> Event:
        message = actions(action=action, user_id=reader, post_id=post.post_id)
        return Event(Topic.ENGAGEMENTS, reader, message)

    async def like_and_unlike(reader: int, store: SqlPostStore) -> int:
        changes = 0
        for _ in range(12):
            liked, unliked = (
                engaged(reader, action) for action in (actions.ACTION_LIKED, actions.ACTION_UNLIKED)
            )
            changes += await store.like(reader, post.post_id, datetime.now(UTC), liked)
            changes += await store.unlike(reader, post.post_id, unliked)
        return changes

    async with relaying(own) as log:
        # Two at a time contend for each like, and all for the post's count.
        changes = await asyncio.gather(
            *(like_and_unlike(reader, store) for reader in readers for store in stores)
        )
    await elsewhere.close()
    assert sum(changes) > 2 * len(readers)
    assert len(log.records) == 1 + sum(changes)
    for reader in readers:
        told = [
            decode(Record(each.topic, each.key, each.value, "0"), actions).action
            for each in log.of(reader)
        ]
        # Each like is followed by its end: any other order would be one that never was.
        assert told == [actions.ACTION_LIKED, actions.ACTION_UNLIKED] * (len(told) // 2)
    assert (await stores[0].get([post.post_id]))[post.post_id].like_count == 0


# -- the server goes and comes back -------------------------------------------------------------


def own_place(folder: Path) -> Place:
    """Where a server of the test's own may be: others must not lose theirs."""
    while True:
        # Below those that clients' own ends are given: one of these would have it meanwhile.
        first = random.randrange(20_000, 32_000)
        with ExitStack() as held, suppress(OSError, OverflowError):
            for port in (first + Port.TIDB, first + Port.TIDB_STATUS):
                held.enter_context(socket.create_server((Settings().stack_host, port)))
            return replace(Place.of(Settings()), first_port=first, folder=folder)


@pytest.mark.parametrize("how", ["killed", "stopped"])
async def test_what_was_acknowledged_survives_a_restart_and_writing_goes_on(
    tmp_path: Path, how: str
) -> None:
    place = own_place(tmp_path)
    daemon = Daemon(await tidb_server.server(place), place)
    await daemon.start()
    db: Database | None = None
    try:
        await migrate(daemon.server.url)
        db = Database(daemon.server.url)
        posts, acknowledged, refused = SqlPostStore(db), list[StoredPost](), 0
        is_over = asyncio.Event()

        async def write() -> None:
            nonlocal refused
            while not is_over.is_set():
                post = a_post()
                try:
                    acknowledged.append(await posts.create(post, posted(post)))
                except Unavailable:
                    refused += 1

        writers = [asyncio.create_task(write()) for _ in range(8)]
        await eventually(lambda: len(acknowledged) >= 50, within_s=60)
        await (daemon.kill() if how == "killed" else daemon.stop())
        before = len(acknowledged)
        await daemon.start()
        await eventually(lambda: len(acknowledged) >= before + 50, within_s=60)
        is_over.set()
        await asyncio.gather(*writers)

        found = await posts.get([post.post_id for post in acknowledged])
        assert len(found) == len(acknowledged)
        announced_ids = Counter(
            int(row.record.key) for row in await SqlOutbox(db).pending(1_000_000)
        )
        assert all(announced_ids[post.author_id] == 1 for post in acknowledged)
    finally:
        if db is not None:
            await db.close()
        await daemon.kill()


async def test_without_a_server_it_is_unavailable_within_the_deadline(url: str) -> None:
    away = Database(rendered(make_url(url).set(port=free_port())))
    posts, post = SqlPostStore(away), a_post()
    with deadlines.within(0.5):
        with pytest.raises(Unavailable):
            await posts.create(post, posted(post))
        with pytest.raises(Unavailable):
            await posts.get([1])
    await away.close()


# -- what is said of it -------------------------------------------------------------------------


async def test_statements_and_commits_are_spans_of_the_server(
    database: Database, url: str, spans: InMemorySpanExporter
) -> None:
    number = fresh_id()
    spans.clear()
    await SqlGraphStore(database).mark_pulled(number)
    assert await SqlGraphStore(database).is_pulled(number)
    added, commit, read = [
        span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT
    ]
    where = {
        "db.system.name": "mysql",
        "server.address": "127.0.0.1",
        "server.port": make_url(url).port,
        "db.namespace": make_url(url).database,
    }
    assert dict(added.attributes or {}) == where | {
        "db.operation.name": "INSERT",
        "db.collection.name": "pulled_authors",
        "db.query.summary": "INSERT pulled_authors",
        "db.query.text": "INSERT IGNORE INTO pulled_authors (author_id) VALUES (%s)",
    }
    assert dict(commit.attributes or {}) == where | {
        "db.operation.name": "COMMIT",
        "db.query.summary": "COMMIT",
    }
    assert (read.name, read.status.status_code) == ("SELECT pulled_authors", StatusCode.UNSET)
    assert not any(str(number) in span.to_json() for span in (added, commit, read))


async def test_an_error_says_its_number_and_nobodys_data(
    database: Database, spans: InMemorySpanExporter
) -> None:
    name = f"ann{fresh_id()}"
    store = SqlUserStore(database)
    user, namesake = (User(fresh_id(), name, name, datetime.now(UTC)) for _ in range(2))
    await store.create(user, None)
    spans.clear()
    with pytest.raises(AlreadyExists) as caught, telemetry.span("request"):
        await store.create(namesake, None)
    cause = caught.value.__cause__
    assert isinstance(cause, IntegrityError)
    # Also what a log of the whole chain would have.
    assert name not in "".join(traceback.format_exception(cause))
    assert "DUP_ENTRY" in str(cause)

    row = {"holder": name, "expires_at_ms": 0, "name": name}

    async def add_twice(connection: AsyncConnection) -> None:
        await connection.execute(insert(leases), row)
        await connection.execute(insert(leases), row)

    with pytest.raises(IntegrityError), telemetry.span("request"):
        await database.write(add_twice)
    failed = [
        span
        for span in spans.get_finished_spans()
        if (span.attributes or {}).get("db.response.status_code") == "1062"
    ]
    assert [span.name for span in failed] == ["INSERT users", "INSERT leases"]
    assert {span.status.status_code for span in failed} == {StatusCode.ERROR}
    said = "".join(span.to_json() for span in spans.get_finished_spans())
    assert "IntegrityError" in said
    assert name not in said
