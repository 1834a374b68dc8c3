"""The receiver that other tests rely on, against OpenTelemetry's own exporters."""

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.eventually import eventually
from tests.fixtures.otlp import JSON, PROTOBUF, OtlpReceiver


@pytest.fixture
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="module")
def finished() -> list[ReadableSpan]:
    """A parent and its child, of the service "tested"."""
    kept = InMemorySpanExporter()
    provider = TracerProvider(resource=Resource.create({"service.name": "tested"}))
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("parent"), tracer.start_as_current_span("child"):
        pass
    return list(kept.get_finished_spans())


def as_protobuf(spans: list[ReadableSpan]) -> bytes:
    return encode_spans(spans).SerializeToString()


def as_json(spans: list[ReadableSpan]) -> bytes:
    """Written by hand from the specification: ids in hex, times as strings, enums as numbers."""
    return json.dumps(
        {
            "resourceSpans": [
                {
                    "resource": {
                        "attributes": [{"key": "service.name", "value": {"stringValue": "tested"}}]
                    },
                    "scopeSpans": [
                        {
                            "scope": {"name": "test"},
                            "spans": [
                                {
                                    "traceId": f"{span.context.trace_id:032x}",
                                    "spanId": f"{span.context.span_id:016x}",
                                    "parentSpanId": (
                                        f"{span.parent.span_id:016X}" if span.parent else ""
                                    ),
                                    "name": span.name,
                                    "kind": 1,
                                    "startTimeUnixNano": str(span.start_time),
                                    "endTimeUnixNano": str(span.end_time),
                                    "aFieldOfTheFuture": True,
                                }
                                for span in spans
                            ],
                        }
                    ],
                }
            ]
        }
    ).encode()


def expect(receiver: OtlpReceiver, finished: list[ReadableSpan]) -> None:
    """The receiver has the spans, whole."""
    received = [
        (service, span.name, span.trace_id, span.span_id, span.parent_span_id,
         span.start_time_unix_nano)
        for service, span in receiver.spans()
    ]  # fmt: skip
    assert received == [
        ("tested", span.name, span.context.trace_id.to_bytes(16), span.context.span_id.to_bytes(8),
         span.parent.span_id.to_bytes(8) if span.parent else b"", span.start_time)
        for span in finished
    ]  # fmt: skip


async def export(receiver: OtlpReceiver, spans: list[ReadableSpan]) -> SpanExportResult:
    """Sends the spans over gRPC, gzipped, by the SDK's exporter."""
    import grpc

    exporter = OTLPSpanExporter(
        f"http://{receiver.grpc_endpoint}", timeout=1, compression=grpc.Compression.Gzip
    )
    try:
        return await asyncio.to_thread(exporter.export, spans)
    finally:
        await asyncio.to_thread(exporter.shutdown)


async def test_spans_arrive_over_grpc(receiver: OtlpReceiver, finished: list[ReadableSpan]) -> None:
    assert await export(receiver, finished) is SpanExportResult.SUCCESS
    expect(receiver, finished)


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize(("content_type", "body"), [(PROTOBUF, as_protobuf), (JSON, as_json)])
async def test_spans_arrive_over_http(
    receiver: OtlpReceiver,
    finished: list[ReadableSpan],
    content_type: str,
    body: Callable[[list[ReadableSpan]], bytes],
    zipped: bool,
) -> None:
    content, headers = body(finished), {"content-type": f"{content_type}; charset=utf-8"}
    if zipped:
        content, headers["content-encoding"] = gzip.compress(content), "gzip"
    async with httpx.AsyncClient(base_url=receiver.http_endpoint) as client:
        answer = await client.post("/v1/traces", content=content, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (200, content_type)
    expect(receiver, finished)


async def test_what_is_no_export_is_refused(receiver: OtlpReceiver) -> None:
    bad_id = {"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "ab", "spanId": "cd"}]}]}]}
    for content, headers, status in (
        (b"\xff", {"content-type": PROTOBUF}, 400),
        (b"{", {"content-type": JSON}, 400),
        (json.dumps(bad_id).encode(), {"content-type": JSON}, 400),
        (b"plain", {"content-type": PROTOBUF, "content-encoding": "gzip"}, 400),
        (b"", {"content-type": "text/plain"}, 415),
    ):
        async with httpx.AsyncClient(base_url=receiver.http_endpoint) as client:
            answer = await client.post("/v1/traces", content=content, headers=headers)
        assert answer.status_code == status, (content, headers)
    assert not receiver.resource_spans


async def test_told_to_fail_it_keeps_nothing_until_told_otherwise(
    receiver: OtlpReceiver, finished: list[ReadableSpan]
) -> None:
    receiver.behave(fail=True)
    assert await export(receiver, finished) is SpanExportResult.FAILURE
    async with httpx.AsyncClient(base_url=receiver.http_endpoint) as client:
        answer = await client.post(
            "/v1/traces", content=as_protobuf(finished), headers={"content-type": PROTOBUF}
        )
    assert answer.status_code == 503
    assert not receiver.resource_spans
    assert receiver.requests >= 2
    receiver.behave()
    assert await export(receiver, finished) is SpanExportResult.SUCCESS
    expect(receiver, finished)


async def test_told_to_be_slow_it_answers_late(
    receiver: OtlpReceiver, finished: list[ReadableSpan]
) -> None:
    receiver.behave(delay_s=60)
    sending = asyncio.create_task(export(receiver, finished))
    await eventually(lambda: receiver.requests > 0)
    assert await sending is SpanExportResult.FAILURE
    assert not receiver.resource_spans
