"""Every metric, in one place. Served as OpenMetrics, with exemplars that lead to traces."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import trace
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import REGISTRY

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

FEED_LATENCY = Histogram(
    "feed_latency_seconds",
    "Seconds of one stage of GET /feed; stage=total is the whole.",
    ["stage", "outcome"],
    buckets=_SECONDS,
)
FEED_CANDIDATES = Counter(
    "feed_candidates", "Candidates retrieved, by the source that gave them.", ["source"]
)
FEED_VERDICTS = Counter("feed_verdicts", "Judgements of candidates.", ["verdict"])
FEED_ITEMS = Counter("feed_items", "Posts served on first pages, by source.", ["source"])
FEED_DEGRADED = Counter(
    "feed_degraded", "Times that a request went on without a backend.", ["backend"]
)
RETRIEVAL_RECALL = Histogram(
    "retrieval_recall",
    "Share of the exact nearest posts that a sampled discovery search found.",
    buckets=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
)
EVENTS_HANDLED = Counter(
    "events_handled", "Records that a consumer is done with.", ["topic", "group", "outcome"]
)
EVENT_DELAY = Histogram(
    "event_delay_seconds",
    "Seconds from an event to the end of its handling.",
    ["topic", "group"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 600),
)
EVENT_LAG = Gauge("event_lag", "Records that a consumer has not committed.", ["topic", "group"])
OUTBOX_PENDING = Gauge("outbox_pending", "Rows of the outbox that the relay found waiting.")
FANOUT_MAILBOXES = Counter("fanout_mailboxes", "Mailboxes that posts were pushed to.")
SPANS_EXPORTED = Counter(
    "trace_spans_exported",
    "Spans that a collector took (ok), did not take (failed), or that no room was left for "
    "(dropped).",
    ["outcome"],
)
HTTP_SERVER = Histogram(
    "http_server_request_duration_seconds",
    "Seconds of one HTTP request.",
    ["http_request_method", "http_route", "http_response_status_code"],
    buckets=_SECONDS,
)
RPC_SERVER = Histogram(
    "rpc_server_call_duration_seconds",
    "Seconds of one call, at the server.",
    ["rpc_method", "rpc_response_status_code"],
    buckets=_SECONDS,
)
RPC_CLIENT = Histogram(
    "rpc_client_call_duration_seconds",
    "Seconds of one call, at the client.",
    ["rpc_method", "rpc_response_status_code"],
    buckets=_SECONDS,
)
DB_CLIENT = Histogram(
    "db_client_operation_duration_seconds",
    "Seconds of one operation or batch of a database, at the client.",
    ["db_system_name", "db_operation_name", "error_type"],
    buckets=_SECONDS,
)


def observe(histogram: Histogram, seconds: float) -> None:
    """Observes with the current trace as exemplar, when that trace is kept."""
    current = trace.get_current_span().get_span_context()
    exemplar = (
        {"trace_id": trace.format_trace_id(current.trace_id)}
        if current.trace_flags.sampled
        else None
    )
    histogram.observe(seconds, exemplar)


@contextmanager
def feed_stage(stage: str) -> Iterator[None]:
    """Times one stage of GET /feed; an exception makes its outcome `error`."""
    started, outcome = time.perf_counter(), "error"
    try:
        yield
        outcome = "ok"
    finally:
        observe(FEED_LATENCY.labels(stage, outcome), time.perf_counter() - started)


def exposition() -> bytes:
    """All metrics of this process in the OpenMetrics text format."""
    text: bytes = generate_latest(REGISTRY)  # type: ignore[no-untyped-call]
    return text
