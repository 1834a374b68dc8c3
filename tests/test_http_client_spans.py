"""What httpx's instrumentation promises: every request of ours has a span that ends, and its trace
goes along."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import httpx
import pytest
from opentelemetry.instrumentation.httpx import HTTPXClientInstrumentor
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

received: list[str] = []


@pytest.fixture
async def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
async def client(spans: InMemorySpanExporter) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that answers with the status its path says, or not at all."""
    ending = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        received.append(head)
        path = head.split()[1]
        if path == "/never":
            await ending.wait()
        else:
            answer = f"HTTP/1.1 {path[1:]} Text\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            writer.write(answer.encode())
        writer.close()

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=0.2) as client:
            HTTPXClientInstrumentor.instrument_client(client, tracer_provider=provider)
            yield client
        ending.set()


def only(spans: InMemorySpanExporter) -> ReadableSpan:
    [span] = spans.get_finished_spans()
    return span


async def test_a_request_carries_its_trace(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    await client.get("/200")
    span = only(spans)
    assert span.status.status_code is StatusCode.UNSET
    assert span.context is not None
    sent = f"traceparent: 00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"
    assert sent in received[-1]


@pytest.mark.parametrize("path", ["/404", "/500", "/never"])
async def test_a_request_that_fails_is_an_error(
    client: httpx.AsyncClient, spans: InMemorySpanExporter, path: str
) -> None:
    with contextlib.suppress(httpx.HTTPError):
        (await client.get(path)).raise_for_status()
    assert only(spans).status.status_code is StatusCode.ERROR


async def test_a_request_that_is_cancelled_ends(
    client: httpx.AsyncClient, spans: InMemorySpanExporter
) -> None:
    request = asyncio.create_task(client.get("/never", timeout=60))
    await asyncio.wait({request}, timeout=0.05)
    request.cancel()
    with pytest.raises(asyncio.CancelledError):
        await request
    assert only(spans).end_time is not None
