"""The last traces in memory, of this process and, over a real socket, of others."""

import socket
import stat
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from mesh import otlp
from mesh.settings import Settings
from mesh.trace_buffer import Sender, TraceBuffer, hosted, socket_path
from tests.eventually import eventually


class Process:
    """A process as far as spans go: a service with a provider and a processor of its own."""

    def __init__(self, service: str) -> None:
        self.ended = InMemorySpanExporter()
        self.provider = TracerProvider(
            resource=Resource({"service.name": service}), shutdown_on_exit=False
        )
        self.provider.add_span_processor(SimpleSpanProcessor(self.ended))
        self._tracer = self.provider.get_tracer("tests")

    def trace(self, spans: int = 1) -> str:
        """Ends a trace of so many spans, one below the other; returns its id."""
        with self._tracer.start_as_current_span(f"span {spans}") as top:
            if spans > 1:
                self.trace(spans - 1)
            return f"{top.get_span_context().trace_id:032x}"


def spans_of(buffer: TraceBuffer, trace_id: str) -> list[otlp.Span]:
    return otlp.read(buffer.trace(trace_id))


def test_spans_of_this_process_come_back_whole() -> None:
    buffer, here = TraceBuffer(10), Process("here")
    here.provider.add_span_processor(buffer)
    trace_id = here.trace(spans=3)
    found = spans_of(buffer, trace_id)
    assert found == otlp.read(encode_spans(here.ended.get_finished_spans()).resource_spans)
    assert len(found) == 3


def test_spans_of_other_processes_join_their_trace_with_their_own_resource() -> None:
    buffer, here, there = TraceBuffer(10), Process("here"), Process("there")
    here.provider.add_span_processor(buffer)
    own = here.trace()
    mixed, alone = there.trace(spans=2), there.trace()
    request = encode_spans(there.ended.get_finished_spans())
    for span in request.resource_spans[0].scope_spans[0].spans:
        if span.trace_id.hex() == mixed:
            span.trace_id = bytes.fromhex(own)
    buffer.receive(request)
    assert sorted(span.service for span in spans_of(buffer, own)) == ["here", "there", "there"]
    assert [span.service for span in spans_of(buffer, alone)] == ["there"]
    assert {span.scope for span in spans_of(buffer, own)} == {"tests"}


def test_an_unknown_trace_has_nothing() -> None:
    assert TraceBuffer(10).trace("ab" * 16) == []


def test_a_trace_that_is_too_long_keeps_its_upper_part() -> None:
    buffer, here = TraceBuffer(10, spans=4), Process("here")
    here.provider.add_span_processor(buffer)
    found = spans_of(buffer, here.trace(spans=9))
    assert {span.name for span in found} == {"span 9", "span 8", "span 7", "span 6"}
    assert [span.name for span in otlp.tops(found)] == ["span 9"]


def test_long_traces_are_kept_in_lesser_number() -> None:
    buffer, here = TraceBuffer(10), Process("here")
    here.provider.add_span_processor(buffer)
    ids = [here.trace(spans=300) for _ in range(8)]
    assert buffer.newest(100) == [*reversed(ids[-3:])]
    assert {len(spans_of(buffer, each)) for each in ids[-3:]} == {300}
    small = [here.trace() for _ in range(5)]
    assert buffer.newest(5) == [*reversed(small)]
    # One alone may be longer than the average of all.
    alone = TraceBuffer(1, spans=500)
    here.provider.add_span_processor(alone)
    assert len(spans_of(alone, here.trace(spans=400))) == 400


@given(st.integers(1, 5), st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40))
def test_the_newest_traces_are_kept_whoever_sends_them(
    limit: int, arrivals: list[tuple[int, bool]]
) -> None:
    """Each arrival is a span of trace n, which ends here or is sent by another process."""
    buffer = TraceBuffer(limit)
    expected: dict[int, int] = {}
    for number, sent in arrivals:
        span = _span(number + 1)
        if sent:
            buffer.receive(ExportTraceServiceRequest.FromString(_encoded(span)))
        else:
            buffer.on_end(span)
        expected[number] = expected.get(number, 0) + 1
        if len(expected) > limit:
            del expected[next(iter(expected))]
    ids = [f"{number + 1:032x}" for number in reversed(expected)]
    assert buffer.newest(100) == ids
    assert buffer.newest(1) == ids[:1]
    for number, count in expected.items():
        assert len(spans_of(buffer, f"{number + 1:032x}")) == count
    for number in {number for number, _ in arrivals} - expected.keys():
        assert spans_of(buffer, f"{number + 1:032x}") == []


_span_ids: Iterator[int] = iter(range(1, 1_000_000))


def _span(trace_id: int) -> ReadableSpan:
    context = SpanContext(trace_id, next(_span_ids), is_remote=False)
    return ReadableSpan("x", context, resource=Resource({"service.name": "s"}))


def _encoded(span: ReadableSpan) -> bytes:
    return encode_spans([span]).SerializeToString()


@pytest.fixture
def settings() -> Iterator[Settings]:
    # Sockets have short paths; those of pytest's folders may not be.
    with tempfile.TemporaryDirectory() as folder:
        yield Settings(data_dir=Path(folder), debug_traces=10)


@pytest.fixture
async def buffer(settings: Settings) -> AsyncIterator[TraceBuffer]:
    async with hosted(settings) as buffer:
        yield buffer


@pytest.fixture
def sending(settings: Settings) -> Iterator[Callable[[], Process]]:
    senders = []

    def start() -> Process:
        process, sender = Process("there"), Sender(settings)
        process.provider.add_span_processor(sender)
        senders.append(sender)
        return process

    yield start
    for sender in senders:
        sender.shutdown()


async def test_another_processs_spans_arrive_over_the_socket(
    buffer: TraceBuffer, sending: Callable[[], Process]
) -> None:
    trace_id = sending().trace(spans=3)
    found = await eventually(lambda: spans_of(buffer, trace_id))
    assert [(span.service, span.name) for span in found] == [
        ("there", "span 1"), ("there", "span 2"), ("there", "span 3"),
    ]  # fmt: skip


async def test_sending_spans_makes_no_spans(
    buffer: TraceBuffer, sending: Callable[[], Process], spans: InMemorySpanExporter
) -> None:
    there = sending()
    trace_ids = [there.trace() for _ in range(3)]
    await eventually(lambda: all(spans_of(buffer, each) for each in trace_ids))
    assert set(buffer.newest(100)) == set(trace_ids)
    assert spans.get_finished_spans() == ()


async def test_only_the_user_may_open_the_socket(buffer: TraceBuffer, settings: Settings) -> None:
    mode = socket_path(settings).stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o600


async def test_a_gateway_that_comes_again_receives_again(
    settings: Settings, sending: Callable[[], Process]
) -> None:
    there = sending()
    there.trace()
    for _ in range(2):
        async with hosted(settings) as buffer:
            trace_id = there.trace()
            await eventually(partial(spans_of, buffer, trace_id))
        there.trace()
    assert not socket_path(settings).exists()


async def test_a_socket_that_a_killed_gateway_left_is_in_nobodys_way(
    settings: Settings, sending: Callable[[], Process]
) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(socket_path(settings)))
    there = sending()
    async with hosted(settings) as buffer:
        trace_id = there.trace()
        await eventually(lambda: spans_of(buffer, trace_id))


async def test_a_socket_that_cannot_be_is_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path / ("x" * 150), debug_traces=1)
    with pytest.raises(OSError, match="FEED_DATA_DIR"):
        async with hosted(settings):
            pass
