"""What the long memory in Pinot does beyond the conformance suite."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from feed.v1 import filter_pb2 as f
from feed.v1.common_pb2 import (
    CANDIDATE_SOURCE_DISCOVERY,
    Candidates,
    Reader,
)
from feed.v1.events_pb2 import ImpressionEvent
from feed.v1.filter_pb2_grpc import FilterServiceStub
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pinotdb.db import apply_parameters

from filter_svc.service import server
from mesh import telemetry
from mesh.channels import call
from mesh.errors import Unavailable
from mesh.ids import now_ms
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.codec import encode, new_event_id
from stores.events.port import Event, Topic
from stores.impressions import pinot as adapter
from stores.impressions.pinot import PinotAddress, require_numbers
from stores.impressions.pinot_table import schema, table
from stores.impressions.port import Impression, ImpressionStore
from tests.eventually import eventually
from tests.fixtures.kafka import everything, headers_of
from tests.fixtures.pinot import Pinot
from tests.fixtures.spans import attribute
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.fixtures.stack import Stack
from tests.fixtures.valkey import free_port
from tests.services.conftest import Serve
from workers.runner import run_workers

pytestmark = pytest.mark.timeout(300)


@asynccontextmanager
async def opened(impressions_url: str, events_url: str) -> AsyncIterator[Connections]:
    settings = Settings(impressions_url=impressions_url, events_url=events_url)
    async with Connections(settings) as stores:
        yield stores


@asynccontextmanager
async def answering(body: object, status: int = 200) -> AsyncIterator[ImpressionStore]:
    """A store whose Pinot answers every query with the body; None is no answer at all."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        if body is None:
            await closing.wait()
        else:
            content = json.dumps(body).encode()
            writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n\r\n" % (status, len(content)))
            writer.write(content)
        writer.close()

    closing = asyncio.Event()
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        nobody = f"kafka://127.0.0.1:{free_port()}"
        async with opened(f"pinot://127.0.0.1:{port}", nobody) as stores:
            yield stores.impressions()
        closing.set()


def complete(**changes: object) -> dict[str, object]:
    """An answer of one row, as Pinot gives it."""
    columns = {"columnNames": ["a", "b", "c"], "columnDataTypes": ["LONG", "LONG", "DOUBLE"]}
    return {
        "resultTable": {"dataSchema": columns, "rows": [[1, 2, 3.0]]},
        "exceptions": [],
        "numServersQueried": 2,
        "numServersResponded": 2,
        **changes,
    }


async def test_a_complete_answer_is_taken() -> None:
    async with answering(complete()) as store:
        [seen] = await store.seen(1, 0, 10)
    assert (seen.post_id, seen.count, seen.last_seen_ms) == (1, 2, 3)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (complete(exceptions=[{"errorCode": 200, "message": "QueryExecutionError: user 42"}]), 200),
        (complete(numServersResponded=1), 200),
        (complete(partialResult=True), 200),
        (complete(numGroupsLimitReached=True), 200),
        (complete(), 503),
        ("no table", 200),
    ],
)
async def test_an_answer_with_a_fault_is_no_answer(body: object, status: int) -> None:
    async with answering(body, status) as store:
        with pytest.raises(Unavailable) as caught:
            await store.seen(42, 0, 10)
    # A reader's id would go into logs.
    assert "42" not in str(caught.value)


async def test_pinot_that_does_not_answer_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapter, "_READER_S", 0.1)
    async with answering(None) as store:
        with pytest.raises(Unavailable):
            await store.seen(1, 0, 10)


async def test_pinot_that_is_away_is_unavailable_and_tells_so_on_its_span(
    spans: InMemorySpanExporter,
) -> None:
    port = free_port()
    url, events = f"pinot://127.0.0.1:{port}", f"kafka://127.0.0.1:{free_port()}"
    async with opened(url, events) as stores:
        with telemetry.span("request"), pytest.raises(Unavailable):
            await stores.impressions().seen(1, 0, 10)
    [span] = [each for each in spans.get_finished_spans() if each.name == "SELECT impressions"]
    assert attribute(span, "db.system.name") == "pinot"
    assert attribute(span, "db.operation.name") == "SELECT"
    assert attribute(span, "db.collection.name") == "impressions"
    assert attribute(span, "server.port") == port
    assert attribute(span, "error.type") == "ConnectError"
    assert "user_id = %(user_id)s" in str(attribute(span, "db.query.text"))


@given(st.integers(-(2**63), 2**63 - 1))
def test_numbers_stand_in_the_statement_as_they_are(number: int) -> None:
    statement = apply_parameters("a = %(a)s LIMIT 1", require_numbers({"a": number}))
    assert statement == f"a = {number} LIMIT 1"


@given(
    st.one_of(
        st.text(), st.none(), st.booleans(), st.floats(), st.binary(), st.lists(st.integers())
    )
)
def test_nothing_but_numbers_gets_into_a_statement(value: object) -> None:
    with pytest.raises(TypeError):
        require_numbers({"a": value})


@given(st.integers(min_value=2**63) | st.integers(max_value=-(2**63) - 1))
def test_numbers_beyond_64_bits_are_refused(number: int) -> None:
    with pytest.raises(OverflowError):
        require_numbers({"a": number})


@pytest.mark.parametrize("url", ["pinot://", "pinot://h/a-b", "pinot://h/a b", "pinot://h/a;b"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="pinot://host"):
        PinotAddress.parse(url)


def test_pinot_wants_kafka() -> None:
    stores = Connections(Settings(impressions_url="pinot://h:1", events_url="redis://h:1"))
    with pytest.raises(ValueError, match="FEED_EVENTS_URL begins with redis://"):
        stores.impressions()


def test_the_schema_has_the_fields_of_the_event_and_no_others() -> None:
    columns = {
        each["name"]
        for kind in ("dimensionFieldSpecs", "dateTimeFieldSpecs")
        for each in schema()[kind]
    }
    assert columns == {field.name for field in ImpressionEvent.DESCRIPTOR.fields}


def test_the_tables_of_both_versions_differ_in_known_ways_only() -> None:
    old, new = table("0.11", ["k:1"], "t", 4), table("1.5", ["k:1"], "t", 4)
    factory = "stream.kafka.consumer.factory.class.name"
    streams = [each["tableIndexConfig"].pop("streamConfigs") for each in (old, new)]
    assert [stream.pop(factory).split(".")[-2] for stream in streams] == ["kafka20", "kafka30"]
    assert streams[0].pop("stream.kafka.consumer.type") == "lowlevel"
    assert streams[0] == streams[1]
    for name in ("schemaName", "replicasPerPartition"):
        del old["segmentsConfig"][name]
    assert old == new


@pytest.mark.stack
async def test_a_reader_is_looked_for_in_one_partition(pinot: Pinot) -> None:
    async with opened(pinot.impressions_url, pinot.events_url) as stores:
        store = stores.impressions()
        readers = fresh_ids(40)
        await store.record(
            [Impression(new_event_id(), reader, fresh_id(), 1, now_ms()) for reader in readers]
        )
        for reader in readers:

            async def is_seen(reader: int = reader) -> bool:
                return len(await store.seen(reader, 0, 10)) == 1

            # Found there, too: Kafka's clients and Pinot agree on the partition of a key.
            await eventually(is_seen, within_s=60)
            where = f"FROM {pinot.table} WHERE user_id = {reader}"
            told = await pinot.statistics(f"SELECT COUNT(*) {where}")
            whole = await pinot.statistics(f"SELECT COUNT(*) FROM {pinot.table}")
            # One partition of four is left; it may have more segments than the others.
            segments = whole["numSegmentsQueried"]
            assert segments >= 4
            assert told["numSegmentsPrunedByBroker"] >= segments / 2
            assert told["numSegmentsQueried"] <= segments - 3


@pytest.mark.stack
async def test_a_table_that_is_not_there_is_unavailable_with_pinots_number(
    pinot: Pinot, spans: InMemorySpanExporter
) -> None:
    url = f"{pinot.impressions_url}_not"
    async with opened(url, pinot.events_url) as stores:
        with telemetry.span("request"), pytest.raises(Unavailable):
            await stores.impressions().seen(1, 0, 10)
    [span] = [each for each in spans.get_finished_spans() if each.name.startswith("SELECT")]
    assert attribute(span, "db.response.status_code") == "190"


@pytest.mark.stack
async def test_what_pinot_has_not_taken_in_yet_is_kept_from_the_feed_all_the_same(
    pinot: Pinot, stack: Stack, serve: Serve
) -> None:
    reader, author = fresh_ids(2)
    posts = fresh_ids(30)
    changes = {
        "events_url": pinot.events_url,
        "impressions_url": pinot.impressions_url,
        "redis_url": await stack.url("valkey"),
    }

    async with Connections(Settings.model_validate(changes)) as stores:
        memory = stores.impressions()

        async def taken_in() -> int:
            return len(await memory.seen(reader, 0, 100))

        async with serve(server, **changes) as channel:
            stub = FilterServiceStub(channel)

            async def verdicts() -> tuple[list[int], list[int]]:
                listed = await call(stub.ListSeen, f.ListSeenRequest(reader_id=reader), timeout=10)
                assert not listed.degraded
                request = f.FilterCandidatesRequest(
                    reader=Reader(user_id=reader),
                    candidates=Candidates(
                        post_ids=posts,
                        author_ids=[author] * len(posts),
                        sources=[CANDIDATE_SOURCE_DISCOVERY] * len(posts),
                        retrieval_scores=[1.0] * len(posts),
                    ),
                    seen=listed.seen,
                )
                judged = await call(stub.FilterCandidates, request, timeout=10)
                return list(judged.verdicts), list(listed.seen.counts)

            expected = [f.VERDICT_SEEN] * 20 + [f.VERDICT_KEPT] * 10
            async with pinot.paused():
                seen_at_ms = now_ms()
                # As POST /impressions does.
                await stores.recent_seen().record(reader, posts[:20], seen_at_ms)
                await memory.record(
                    [
                        Impression(new_event_id(), reader, post, author, seen_at_ms)
                        for post in posts[:20]
                    ]
                )
                assert await verdicts() == (expected, [1] * 20)
                assert await taken_in() == 0

            async def is_complete() -> bool:
                # At no moment on the way is one of them shown again.
                assert (await verdicts())[0] == expected
                return await taken_in() == 20

            await eventually(is_complete, within_s=90, every_s=0.2)
            # In both memories now, and still one showing each.
            assert await verdicts() == (expected, [1] * 20)


def test_the_event_in_the_log_has_its_id_in_the_value() -> None:
    message = ImpressionEvent(user_id=1, post_id=2)
    record = encode(Event(Topic.IMPRESSIONS, 1, message), "e1")
    assert json_format.Parse(record.value, ImpressionEvent()).event_id == "e1"
    assert record.headers["event_id"] == "e1"


@pytest.mark.stack
async def test_nobody_copies_what_pinot_reads_by_itself(pinot: Pinot) -> None:
    settings = Settings(events_url=pinot.events_url, impressions_url=pinot.impressions_url)
    event_id, reader = new_event_id(), fresh_id()
    async with Connections(settings) as stores:
        working = asyncio.create_task(run_workers(settings, stores, ["impressions"]))
        try:
            await stores.impressions().record([Impression(event_id, reader, 5, 6, now_ms())])

            async def is_seen() -> bool:
                return bool(await stores.impressions().seen(reader, 0, 10))

            await eventually(is_seen, within_s=60)
            assert not working.done()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        # Else it would read what it has announced, announce it, and so on.
        whole = await everything(pinot.events_url, Topic.IMPRESSIONS)
        assert await stores.events().lag("impressions", Topic.IMPRESSIONS) == len(whole)
        assert [headers_of(each)["event_id"] for each in whole].count(event_id) == 1
