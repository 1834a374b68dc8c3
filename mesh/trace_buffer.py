"""The last traces of an installation, in the memory of the process that has the gateway.

Its own spans are kept as they are when they end; the installation's other processes send theirs
over a unix socket. Nothing is encoded until somebody asks.
"""

from __future__ import annotations  # grpc's generic classes are so in its stubs only

import os
import threading
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
from grpc.aio import ServicerContext
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from mesh import telemetry
from mesh.channels import MAX_MESSAGE_BYTES
from mesh.exporting import Export
from mesh.settings import Settings

# A span takes some 3 kB.
MAX_SPANS = 2_000
MEAN_SPANS = 100
_SEND_EVERY_MS = 200

# A span of another process keeps what it was sent with: its resource and its scope.
_Sent = tuple[ResourceSpans, ScopeSpans, SentSpan]


class TraceBuffer(SpanProcessor):
    """The newest traces; over a limit, the oldest trace goes, and the oldest span of a trace.

    Parents end after their children, so a trace that is too long keeps its upper part. Traces of
    more than 100 spans on average are kept in lesser number.

    Args:
        traces: How many are kept.
        spans: How many are kept of each.
    """

    def __init__(self, traces: int, spans: int = MAX_SPANS) -> None:
        self._limit = traces
        self._spans = spans
        self._count = 0
        self._traces: OrderedDict[int, deque[ReadableSpan | _Sent]] = OrderedDict()
        # Spans may end in any thread.
        self._lock = threading.Lock()

    def on_end(self, span: ReadableSpan) -> None:
        """Keeps a span of this process."""
        if span.context is not None:
            self._keep(span.context.trace_id, span)

    def receive(self, request: ExportTraceServiceRequest) -> None:
        """Keeps spans that another process sent."""
        for resource_spans in request.resource_spans:
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    trace_id = int.from_bytes(span.trace_id, "big")
                    self._keep(trace_id, (resource_spans, scope_spans, span))

    def newest(self, limit: int) -> list[str]:
        """The ids of the traces that began last, the newest first, in hex."""
        with self._lock:
            ids = list(self._traces)
        return [f"{trace_id:032x}" for trace_id in reversed(ids[-limit:])]

    def trace(self, trace_id: str) -> list[ResourceSpans]:
        """What there is of the trace by now; nothing where it is not known.

        Encodes, which takes some 50 us a span.
        """
        with self._lock:
            kept = list(self._traces.get(int(trace_id, 16), ()))
        own = [span for span in kept if isinstance(span, ReadableSpan)]
        return [
            *encode_spans(own).resource_spans,
            *_regrouped([span for span in kept if not isinstance(span, ReadableSpan)]),
        ]

    def _keep(self, trace_id: int, span: ReadableSpan | _Sent) -> None:
        with self._lock:
            spans = self._traces.get(trace_id)
            if spans is None:
                spans = self._traces[trace_id] = deque(maxlen=self._spans)
            self._count += len(spans) < self._spans
            spans.append(span)
            while len(self._traces) > 1 and (
                len(self._traces) > self._limit or self._count > self._limit * MEAN_SPANS
            ):
                _, oldest = self._traces.popitem(last=False)
                self._count -= len(oldest)


def _regrouped(sent: Sequence[_Sent]) -> list[ResourceSpans]:
    """The spans below the resources and scopes that they were sent with."""
    groups: dict[int, ResourceSpans] = {}
    for resource_spans, scope_spans, span in sent:
        group = groups.get(id(scope_spans))
        if group is None:
            group = groups[id(scope_spans)] = ResourceSpans(
                resource=resource_spans.resource,
                schema_url=resource_spans.schema_url,
                scope_spans=[
                    ScopeSpans(scope=scope_spans.scope, schema_url=scope_spans.schema_url)
                ],
            )
        group.scope_spans[0].spans.append(span)
    return list(groups.values())


@asynccontextmanager
async def hosted(settings: Settings) -> AsyncIterator[TraceBuffer]:
    """A buffer of FEED_DEBUG_TRACES traces that gets every span of the installation.

    Raises OSError when its socket cannot be opened.
    """
    buffer = TraceBuffer(settings.debug_traces)
    telemetry.setup(settings, buffer)
    # Without our interceptors: spans about the sending of spans would never end.
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", MAX_MESSAGE_BYTES)])
    add_TraceServiceServicer_to_server(_Receiver(buffer), server)  # type: ignore[no-untyped-call]
    path = socket_path(settings)
    with _for_this_user_only():
        try:
            server.add_insecure_port(f"unix:{path}")
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {path}: {error}; choose a shorter FEED_DATA_DIR, "
                "or FEED_DEBUG_TRACES=0"
            ) from error
    await server.start()
    try:
        yield buffer
    finally:
        await server.stop(None)
        path.unlink(missing_ok=True)


def socket_path(settings: Settings) -> Path:
    """Where the buffer receives."""
    return settings.data_dir / "traces.sock"


class Sender(Export):
    """Sends the spans of a process without the gateway to the buffer, as long as there is one."""

    def __init__(self, settings: Settings) -> None:
        self._path = socket_path(settings)
        super().__init__(f"unix:{self._path}", delay_ms=_SEND_EVERY_MS)

    def on_end(self, span: ReadableSpan) -> None:
        # Before the gateway has started, and after it has ended, nobody is to be waited for.
        if self._path.exists():
            super().on_end(span)


class _Receiver(TraceServiceServicer):
    def __init__(self, buffer: TraceBuffer) -> None:
        self._buffer = buffer

    async def Export(
        self, request: ExportTraceServiceRequest, context: ServicerContext[Any, Any]
    ) -> ExportTraceServiceResponse:
        self._buffer.receive(request)
        return ExportTraceServiceResponse()


@contextmanager
def _for_this_user_only() -> Iterator[None]:
    """Files that are made within the block can be opened by their owner alone."""
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)
