"""Spans on their way to a collector that is there, broken, slow, or away."""

import asyncio
import time
from collections.abc import Callable

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from prometheus_client import REGISTRY

from mesh import exporting
from mesh.exporting import Export
from tests.eventually import eventually
from tests.fixtures.otlp import OtlpReceiver
from tests.fixtures.valkey import free_port

Endpoint = Callable[[OtlpReceiver], str]
ENDPOINTS = [
    pytest.param(lambda receiver: f"grpc://{receiver.grpc_endpoint}", id="grpc"),
    pytest.param(lambda receiver: receiver.http_endpoint, id="http"),
    pytest.param(lambda receiver: f"{receiver.http_endpoint}/v1/traces", id="http-with-path"),
]


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("trace_spans_exported_total", {"outcome": outcome}) or 0.0


def ended_spans(count: int) -> list[ReadableSpan]:
    provider = TracerProvider()
    tracer = provider.get_tracer("test")
    spans = [tracer.start_span(f"span {number}") for number in range(count)]
    for span in spans:
        span.end()
    return [span for span in spans if isinstance(span, ReadableSpan)]


async def end(export: Export) -> float:
    """Seconds that its end took."""
    started = time.monotonic()
    await asyncio.to_thread(export.shutdown)
    return time.monotonic() - started


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_spans_arrive_and_are_counted(endpoint: Endpoint) -> None:
    before = counted("ok")
    async with OtlpReceiver() as receiver:
        export = Export(endpoint(receiver), delay_ms=10)
        for span in ended_spans(3):
            export.on_end(span)
        await eventually(lambda: len(list(receiver.spans())) == 3)
        await end(export)
    assert counted("ok") == before + 3


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_what_waits_is_sent_when_the_process_ends(endpoint: Endpoint) -> None:
    async with OtlpReceiver() as receiver:
        export = Export(endpoint(receiver), delay_ms=60_000)
        for span in ended_spans(2):
            export.on_end(span)
        await end(export)
        assert len(list(receiver.spans())) == 2


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_what_a_broken_collector_refuses_is_counted(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "TIMEOUT_S", 0.2)
    before = counted("failed")
    async with OtlpReceiver() as receiver:
        receiver.behave(fail=True)
        export = Export(endpoint(receiver), delay_ms=10)
        for span in ended_spans(3):
            export.on_end(span)
        await eventually(lambda: counted("failed") == before + 3)
        await end(export)


async def test_spans_that_find_no_room_are_dropped_and_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(exporting, "QUEUE", 8)
    monkeypatch.setattr(exporting, "BATCH", 4)
    before = counted("dropped")
    async with OtlpReceiver() as receiver:
        receiver.behave(delay_s=1)
        export = Export(f"grpc://{receiver.grpc_endpoint}", delay_ms=10)
        [first, *others] = ended_spans(31)
        export.on_end(first)
        # From now on the thread waits for the collector.
        await eventually(lambda: receiver.requests == 1)
        for span in others:
            export.on_end(span)
        assert counted("dropped") == before + 30 - 8
        await end(export)


@pytest.mark.parametrize("scheme", ["grpc", "http"])
async def test_a_collector_that_is_away_holds_up_neither_a_span_nor_the_end(scheme: str) -> None:
    export = Export(f"{scheme}://127.0.0.1:{free_port()}", delay_ms=10)
    spans = ended_spans(2_000)
    started = time.monotonic()
    for span in spans:
        export.on_end(span)
    handed_over = time.monotonic() - started
    took = await end(export)
    # Far below what an attempt at sending may take.
    assert handed_over < exporting.TIMEOUT_S / 5
    assert took < 2 * exporting.TIMEOUT_S


@pytest.mark.parametrize("endpoint", ["localhost:4317", "ftp://host", ""])
def test_an_endpoint_of_no_known_kind_is_refused_with_the_settings_name(endpoint: str) -> None:
    with pytest.raises(ValueError, match="FEED_OTLP_ENDPOINT"):
        exporting.open_exporter(endpoint)


@pytest.mark.parametrize(
    ("endpoint", "kind"),
    [
        ("http://collector:4317", GrpcExporter),
        ("grpc://collector:9999", GrpcExporter),
        ("unix:/run/collector.sock", GrpcExporter),
        ("http://collector:4318", HttpExporter),
        ("https://collector/otlp/v1/traces", HttpExporter),
    ],
)
def test_the_scheme_and_the_registered_port_tell_the_protocol(endpoint: str, kind: type) -> None:
    exporter = exporting.open_exporter(endpoint)
    assert isinstance(exporter, kind)
    exporter.shutdown()
