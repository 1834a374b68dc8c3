"""What every adapter of the outbox port does, and the codec of what lies in it."""

import json
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
import pytest_asyncio
from feed.v1 import events_pb2
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, use_span

from mesh.errors import InvalidArgument
from stores.events.codec import decode, encode, new_event_id
from stores.events.port import Event, OutgoingRecord, Record, Topic
from stores.outbox.port import Outbox
from stores.outbox.sql import SqlOutbox
from stores.sql.database import Database
from tests.fixtures.sql import NewSqlUrl


@pytest_asyncio.fixture
async def outbox(new_sql_url: NewSqlUrl) -> AsyncIterator[Outbox]:
    # Of its own, because every row of an outbox is everybody's.
    db = Database(await new_sql_url())
    yield SqlOutbox(db)
    await db.close()


def a_record(number: int) -> OutgoingRecord:
    event = Event(Topic.GRAPH, number, events_pb2.GraphEvent(user_id=number))
    return encode(event, new_event_id())


async def test_rows_wait_in_the_order_they_were_added_until_published(outbox: Outbox) -> None:
    records = [a_record(n) for n in range(5)]
    await outbox.add(records[:3])
    await outbox.add(records[3:])
    rows = await outbox.pending(10)
    assert [row.record for row in rows] == records
    assert [row.row_id for row in rows] == sorted({row.row_id for row in rows})
    assert await outbox.pending(2) == rows[:2]
    await outbox.published([rows[0].row_id, rows[2].row_id])
    assert await outbox.pending(10) == [rows[1], rows[3], rows[4]]


async def test_row_ids_grow_also_when_the_outbox_was_empty(outbox: Outbox) -> None:
    await outbox.add([a_record(1)])
    (first,) = await outbox.pending(10)
    await outbox.published([first.row_id])
    await outbox.add([a_record(2)])
    (second,) = await outbox.pending(10)
    assert second.row_id > first.row_id


async def test_thousands_of_rows_are_added_and_published(outbox: Outbox) -> None:
    await outbox.add([a_record(n) for n in range(2500)])
    rows = await outbox.pending(5000)
    assert [row.record.key for row in rows] == [str(n) for n in range(2500)]
    await outbox.published([row.row_id for row in rows])
    assert await outbox.pending(1) == []
    await outbox.add([])
    await outbox.published([])


def test_events_are_compact_json_with_the_contracts_names() -> None:
    message = events_pb2.ImpressionEvent(user_id=2**63, post_id=7, seen_at_ms=5, position=0)
    record = encode(Event(Topic.IMPRESSIONS, 2**63, message), "an id")
    assert (record.topic, record.key) == ("feed.impressions.v1", str(2**63))
    assert record.value == (
        b'{"user_id":"9223372036854775808","post_id":"7","seen_at_ms":"5","position":0,'
        b'"event_id":"an id"}'
    )
    assert record.headers["event_id"] == "an id"


def test_headers_carry_the_trace_of_whoever_announces() -> None:
    context = SpanContext(0xABC, 0xDEF, is_remote=False, trace_flags=TraceFlags(1))
    with use_span(NonRecordingSpan(context)):
        record = encode(Event(Topic.GRAPH, 1, events_pb2.GraphEvent()), "an id")
    assert record.headers["traceparent"] == f"00-{0xABC:032x}-{0xDEF:016x}-01"


@given(
    user_id=st.integers(0, 2**64 - 1),
    at=st.integers(-(2**63), 2**63 - 1),
    feed_id=st.text(),
    dwell=st.none() | st.integers(0, 2**32 - 1),
)
def test_what_was_encoded_is_decoded(
    user_id: int, at: int, feed_id: str, dwell: int | None
) -> None:
    message = events_pb2.ImpressionEvent(
        user_id=user_id, seen_at_ms=at, feed_id=feed_id, dwell_ms=dwell
    )
    outgoing = encode(Event(Topic.IMPRESSIONS, user_id, message), "an id")
    message.event_id = "an id"
    assert decode(delivered(outgoing.value), events_pb2.ImpressionEvent) == message


def test_fields_of_a_newer_sender_are_passed_over() -> None:
    value = b'{"user_id":"7","mood":"good"}'
    decoded = decode(delivered(value), events_pb2.GraphEvent)
    assert decoded == events_pb2.GraphEvent(user_id=7)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: (
        st.lists(inner)
        | st.dictionaries(st.sampled_from(["action", "user_id", "x"]) | st.text(), inner)
    ),
)


@given(st.binary() | JSON.map(lambda value: json.dumps(value).encode()))
def test_garbage_is_an_invalid_argument(value: bytes) -> None:
    with suppress(InvalidArgument):
        decode(delivered(value), events_pb2.GraphEvent)


@pytest.mark.parametrize(
    "value", [b"", b"null", b"[]", b"{", b"\xff", b'{"user_id":"a"}', b"[" * 99_999]
)
def test_garbage_is_refused(value: bytes) -> None:
    with pytest.raises(InvalidArgument):
        decode(delivered(value), events_pb2.GraphEvent)


def delivered(value: bytes) -> Record:
    return Record(topic="feed.graph.v1", key="1", value=value, position="0")
