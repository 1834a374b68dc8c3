"""Finished spans on their way to a collector, and the count of those that do not arrive.

Nothing here is in a request's way: a span is put into a bounded queue, a thread sends what is in
it, and when the collector is away, slow or broken the oldest spans are dropped and counted.
"""

import threading
from collections.abc import Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from mesh import metrics

# One sending, with its repetitions.
TIMEOUT_S = 5.0
DELAY_MS = 500
QUEUE = 8192
BATCH = 512
# What a process that ends gives a collector to take the last spans.
_FLUSH_S = 2.0
_GRPC_PORT = 4317


def open_exporter(endpoint: str) -> SpanExporter:
    """The exporter of an endpoint.

    Args:
        endpoint: grpc://HOST:PORT, grpcs://HOST:PORT or unix:PATH for OTLP over gRPC;
            http://HOST:PORT or https://... for OTLP over HTTP, at /v1/traces where no path is
            given; but port 4317, which is gRPC's by registration, means gRPC.

    Raises:
        ValueError: It is none of these.
    """
    parts = urlsplit(endpoint)
    match parts.scheme:
        case "unix":
            return GrpcExporter(endpoint=endpoint, insecure=True, timeout=TIMEOUT_S)
        case "grpc" | "grpcs":
            insecure = parts.scheme == "grpc"
            return GrpcExporter(endpoint=parts.netloc, insecure=insecure, timeout=TIMEOUT_S)
        case "http" | "https" if parts.port == _GRPC_PORT and parts.path in ("", "/"):
            return GrpcExporter(endpoint=endpoint, timeout=TIMEOUT_S)
        case "http" | "https":
            path = parts.path if parts.path not in ("", "/") else "/v1/traces"
            return HttpExporter(endpoint=parts._replace(path=path).geturl(), timeout=TIMEOUT_S)
        case _:
            raise ValueError(
                f"FEED_OTLP_ENDPOINT is {endpoint}; known is grpc://, grpcs://, http://, https://"
            )


class Export(BatchSpanProcessor):
    """Sends spans to a collector, in batches, from a thread of its own.

    Args:
        endpoint: As `open_exporter` knows it.
        delay_ms: How long a span waits for others to go with.
    """

    def __init__(self, endpoint: str, delay_ms: float = DELAY_MS) -> None:
        self._waiting = _Waiting()
        self._exporter = _Counted(open_exporter(endpoint), self._waiting)
        super().__init__(
            self._exporter,
            max_queue_size=QUEUE,
            schedule_delay_millis=delay_ms,
            max_export_batch_size=BATCH,
        )

    def on_end(self, span: ReadableSpan) -> None:
        if span.context is not None and span.context.trace_flags.sampled:
            self._waiting.add()
        super().on_end(span)

    def shutdown(self) -> None:
        """Sends what waits; gives up after some seconds."""
        flushing = threading.Thread(target=self.force_flush, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_S)
        # Ends a sending that is still being repeated; else the processor would wait for it.
        self._exporter.shutdown()
        super().shutdown()  # type: ignore[no-untyped-call]


class _Waiting:
    """How many spans are in the queue, as far as its two ends can tell."""

    def __init__(self) -> None:
        self._count = 0
        self._lock = threading.Lock()

    def add(self) -> None:
        with self._lock:
            if self._count < QUEUE:
                self._count += 1
                return
        # The queue lets the oldest go for it.
        metrics.SPANS_EXPORTED.labels("dropped").inc()

    def take(self, count: int) -> None:
        with self._lock:
            self._count -= count


class _Counted(SpanExporter):
    """Counts what an exporter could send and what not."""

    def __init__(self, exporter: SpanExporter, waiting: _Waiting) -> None:
        self._exporter = exporter
        self._waiting = waiting
        self._ended = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self._waiting.take(len(spans))
        result = SpanExportResult.FAILURE
        try:
            result = self._exporter.export(spans)
        finally:
            outcome = "ok" if result is SpanExportResult.SUCCESS else "failed"
            metrics.SPANS_EXPORTED.labels(outcome).inc(len(spans))
        return result

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        return self._exporter.force_flush(timeout_millis)

    def shutdown(self) -> None:
        if not self._ended:
            self._ended = True
            self._exporter.shutdown()
