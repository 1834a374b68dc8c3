"""What Dgraph does beside what every graph does; a server is needed for most of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from mesh import deadlines, telemetry
from mesh.errors import Unavailable
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.port import OutgoingRecord
from stores.graph.dgraph import DgraphGraphStore
from stores.outbox.sql import SqlOutbox
from stores.sql.database import Database
from tests.fixtures.dgraph import dgraph_url
from tests.fixtures.spans import attribute
from tests.fixtures.sql import announced, fresh_id, fresh_ids
from tests.fixtures.world import free_ports
from tests.stores.test_graph import event, follow

FOLLOWERS = 100_000
PAGE = 1_000


class BrokenOutbox(SqlOutbox):
    """An outbox that is away, as at the moment of a crash."""

    async def add(self, records: Sequence[OutgoingRecord]) -> None:
        raise Unavailable("the database is away")


@pytest.fixture
async def graph(database: Database) -> AsyncIterator[DgraphGraphStore]:
    store = DgraphGraphStore(dgraph_url(), SqlOutbox(database))
    yield store
    await store.close()


@pytest.fixture
async def crashing(database: Database) -> AsyncIterator[DgraphGraphStore]:
    store = DgraphGraphStore(dgraph_url(), BrokenOutbox(database))
    yield store
    await store.close()


async def test_an_author_with_100_000_followers(
    graph: DgraphGraphStore, capsys: pytest.CaptureFixture[str]
) -> None:
    author, followers = fresh_id(), fresh_ids(FOLLOWERS)
    began = time.perf_counter()
    await graph.follow_many([(follower, author) for follower in followers])
    written = time.perf_counter()
    found, after = list[int](), 0
    while page := await graph.followers_page(author, after, PAGE):
        found += page
        after = page[-1]
    paged = time.perf_counter()
    assert found == followers
    assert await graph.follower_counts([author]) == {author: FOLLOWERS}
    counted = time.perf_counter()
    assert await follow(graph, fresh_id(), author)
    followed = time.perf_counter()
    with capsys.disabled():
        print(
            f"\n{FOLLOWERS:,} followers: written in {written - began:.1f} s, "
            f"read in pages of {PAGE:,} in {paged - written:.2f} s, "
            f"counted in {1000 * (counted - paged):.1f} ms, "
            f"one more in {1000 * (followed - counted):.1f} ms"
        )


async def test_what_a_crash_did_not_announce_is_announced_by_another_process(
    crashing: DgraphGraphStore, graph: DgraphGraphStore, database: Database
) -> None:
    reader, author = fresh_ids(2)
    assert await follow(crashing, reader, author)
    assert (await graph.neighborhood(reader)).following == [author]
    # It may be another process's that is about to announce it.
    await graph.announce_left_behind()
    assert await announced(database, reader) == []
    assert await graph.announce_left_behind(older_than_s=0) >= 1
    [record] = await announced(database, reader)
    assert record.headers["event_id"]
    await graph.announce_left_behind(older_than_s=0)
    assert len(await announced(database, reader)) == 1


async def test_what_was_announced_or_changed_nothing_is_not_left_behind(
    crashing: DgraphGraphStore, graph: DgraphGraphStore, database: Database
) -> None:
    reader, author = fresh_ids(2)
    await follow(graph, reader, author)
    assert not await follow(crashing, reader, author)
    assert not await crashing.unblock(reader, author, event(reader))
    await graph.announce_left_behind(older_than_s=0)
    assert len(await announced(database, reader)) == 1


async def test_each_call_is_a_client_span(
    graph: DgraphGraphStore, spans: InMemorySpanExporter
) -> None:
    reader, author = fresh_ids(2)
    await graph.is_pulled(author)
    spans.clear()
    with telemetry.span("PUT follow"):
        await follow(graph, reader, author)
    made = {each.name: each for each in spans.get_finished_spans()}
    assert {"follow feed", "announced feed", "PUT follow"} <= made.keys()
    span = made["follow feed"]
    assert span.kind == SpanKind.CLIENT
    assert span.parent is not None
    assert span.parent.span_id == made["PUT follow"].context.span_id
    assert attribute(span, "db.system.name") == "dgraph"
    assert attribute(span, "db.operation.name") == "follow"
    assert str(reader) not in str(span.attributes)
    assert hex(reader) not in str(span.attributes)


async def test_what_is_there_already_is_not_altered(
    graph: DgraphGraphStore, database: Database, spans: InMemorySpanExporter
) -> None:
    """Altering would get in the way of everybody's transactions, at each start of a process."""
    await graph.is_pulled(fresh_id())
    spans.clear()
    again = DgraphGraphStore(dgraph_url(), SqlOutbox(database))
    await again.is_pulled(fresh_id())
    await again.close()
    names = [each.name for each in spans.get_finished_spans()]
    assert names == ["schema feed", "lease uids", "is pulled feed"]


@pytest.mark.parametrize(
    "url", ["dgraph://", "dgraph://h/path", "dgraph://h:1?x=1", "dgraph://u@h"]
)
async def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    async with Connections(Settings(graph_url=url)) as stores:
        with pytest.raises(ValueError, match="FEED_GRAPH_URL"):
            stores.graph()


async def test_nobody_there_is_unavailable(database: Database, spans: InMemorySpanExporter) -> None:
    [port] = free_ports(1)
    store = DgraphGraphStore(f"dgraph://127.0.0.1:{port}", SqlOutbox(database))
    with pytest.raises(Unavailable), deadlines.within(5):
        await store.neighborhood(1)
    await store.close()
    [span] = spans.get_finished_spans()
    assert span.status.status_code == StatusCode.ERROR
    assert attribute(span, "error.type") in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


async def test_a_server_that_does_not_answer_is_given_up_at_the_deadline(
    database: Database,
) -> None:
    async def hold(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        store = DgraphGraphStore(f"dgraph://127.0.0.1:{port}", SqlOutbox(database))
        began = time.monotonic()
        with pytest.raises(Unavailable), deadlines.within(0.3):
            await store.neighborhood(1)
        assert time.monotonic() - began < 10
        await store.close()
