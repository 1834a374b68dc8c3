"""Every metric, in one place. Served as OpenMetrics, with exemplars that lead to traces.

`docs/metrics.md` is generated from this module (`make docs`).
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from opentelemetry import trace
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import REGISTRY

from mesh.errors import FeedError
from mesh.ids import created_ms, now_ms

CONTENT_TYPE = CONTENT_TYPE_LATEST
# The boundaries that the HTTP and RPC conventions ask for, and two below for calls next door.
_SECONDS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10,
)  # fmt: skip
# From a post or an event to its effect.
_DELAYS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 600)

FEED_LATENCY = Histogram(
    "feed_latency_seconds",
    "Seconds of one stage of GET /feed; stage `total` is the whole. `source` is where most of the"
    " candidates of the stages `social` and `discovery` came from (social, discovery, popular,"
    " exploration, none), and empty for the others. `outcome`: ok, degraded (the page went on"
    " without something; `total` only), rejected (the client's fault), cancelled, error (of a stage"
    " that something stands in for, too).",
    ["stage", "source", "outcome"],
    buckets=_SECONDS,
)
FEED_CANDIDATES = Counter(
    "feed_candidates",
    "Candidates retrieved, by the source that gave them: social, discovery, popular, exploration.",
    ["source"],
)
FEED_VERDICTS = Counter(
    "feed_verdicts", "Judgements of candidates: kept, seen, duplicate, blocked ...", ["verdict"]
)
FEED_ITEMS = Counter(
    "feed_items", "Posts served on first pages: social, discovery, popular.", ["source"]
)
FEED_DEGRADED = Counter(
    "feed_degraded", "Times that a request went on without a backend.", ["backend"]
)
BREAKER_STATE = Gauge(
    "breaker_state", "State of a circuit breaker: 0 closed, 1 half open, 2 open.", ["name"]
)
RETRIEVAL_RECALL = Histogram(
    "retrieval_recall",
    "Share of the exact nearest posts that a sampled discovery search found.",
    buckets=(0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0),
)
POST_VISIBLE = Histogram(
    "post_visible_seconds",
    "Seconds from a post's creation until it can be found. `path`: mailbox (it is in every"
    " follower's mailbox), pulled (in its author's own list, for authors that are pulled at read),"
    " vectors (in the vector index).",
    ["path"],
    buckets=_DELAYS,
)
EVENTS_HANDLED = Counter(
    "events_handled",
    "Records that a consumer is done with. `outcome`: ok, retried (and not done yet), dead.",
    ["topic", "group", "outcome"],
)
EVENT_DELAY = Histogram(
    "event_delay_seconds",
    "Seconds from an event to the end of its handling.",
    ["topic", "group"],
    buckets=_DELAYS,
)
EVENT_LAG = Gauge("event_lag", "Records that a consumer has not committed.", ["topic", "group"])
OUTBOX_PENDING = Gauge(
    "outbox_pending", "Rows of the outbox that the relay found waiting, 100 at most."
)
OUTBOX_PUBLISHED = Counter(
    "outbox_published", "Rows of the outbox that the event log has acknowledged."
)
FEATURES_UNPUSHED = Gauge(
    "features_unpushed", "Users and posts whose features the feature server does not have yet."
)
FEATURES_PUSHED = Counter(
    "features_pushed",
    "Users and posts whose features were pushed to the feature server, as often as they were."
    " `outcome`: ok, refused (they come again, after the others).",
    ["outcome"],
)
MODEL_LOADS = Counter(
    "model_loads",
    "Changes of the model registry that the ranker followed. `outcome`: ok, failed (it goes on with"
    " the models before).",
    ["outcome"],
)
SHADOW_SCORED = Counter(
    "shadow_scored",
    "Requests that the shadow model was to score, too. `outcome`: ok, failed, skipped (too many at"
    " a time).",
    ["outcome"],
)
SHADOW_DIFFERENCE = Histogram(
    "shadow_difference",
    "Mean distance of the shadow's scores from those that counted, 0 to 1, of one request.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1),
)
SHADOW_OVERLAP = Histogram(
    "shadow_overlap",
    "Share of the best 20 by the scores that counted that are the shadow's best 20, too.",
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1),
)
LOG_ROWS = Counter(
    "feed_log_rows",
    "Rows written to the log of feeds, repeats included. `kind`: served, impressions, engagements.",
    ["kind"],
)
FANOUT_MAILBOXES = Counter("fanout_mailboxes", "Mailboxes that posts were pushed to.")
SPANS_EXPORTED = Counter(
    "trace_spans_exported",
    "Spans that a collector took (ok), did not take (failed), or that no room was left for "
    "(dropped).",
    ["outcome"],
)
HTTP_SERVER = Histogram(
    "http_server_request_duration_seconds",
    "Seconds of one HTTP request. `error_type` is empty unless the server failed.",
    [
        "http_request_method",
        "url_scheme",
        "http_route",
        "http_response_status_code",
        "error_type",
    ],
    buckets=_SECONDS,
)
HTTP_SERVER_ACTIVE = Gauge(
    "http_server_active_requests",
    "HTTP requests in flight.",
    ["http_request_method", "url_scheme"],
)
HTTP_CLIENT = Histogram(
    "http_client_request_duration_seconds",
    "Seconds of one HTTP request to a backend, at the client. `error_type` is empty unless it"
    " failed.",
    [
        "http_request_method",
        "server_address",
        "url_template",
        "http_response_status_code",
        "error_type",
    ],
    buckets=_SECONDS,
)
RPC_SERVER = Histogram(
    "rpc_server_call_duration_seconds",
    "Seconds of one call, at the server.",
    ["rpc_system_name", "rpc_method", "rpc_response_status_code"],
    buckets=_SECONDS,
)
RPC_CLIENT = Histogram(
    "rpc_client_call_duration_seconds",
    "Seconds of one call, at the client.",
    ["rpc_system_name", "rpc_method", "rpc_response_status_code"],
    buckets=_SECONDS,
)
DB_CLIENT = Histogram(
    "db_client_operation_duration_seconds",
    "Seconds of one operation or batch of a database, at the client.",
    ["db_system_name", "db_operation_name", "error_type"],
    buckets=_SECONDS,
)
LOOP_LAG = Histogram(
    "event_loop_lag_seconds",
    "Seconds by which the event loop was late for a timer; what blocks it delays every request.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5),
)
INFO = Gauge("feedmesh_info", "1, with what runs here.", ["version", "service"])

# Of a series that begins with its first observation, that one would be no increase.
for _path in ("mailbox", "pulled", "vectors"):
    POST_VISIBLE.labels(_path)


@dataclass(slots=True)
class StageTiming:
    """Under what the time of a stage will be counted."""

    source: str = ""
    outcome: str = "ok"


_timing: ContextVar[StageTiming | None] = ContextVar("feedmesh_stage_timing", default=None)


def observe(histogram: Histogram, value: float) -> None:
    """Observes with the current trace as exemplar, when that trace is kept."""
    histogram.observe(value, _exemplar())


def count(counter: Counter, amount: float = 1) -> None:
    """Counts with the current trace as exemplar, when that trace is kept."""
    counter.inc(amount, _exemplar())


@contextmanager
def feed_stage(stage: str) -> Iterator[StageTiming]:
    """Times one stage of GET /feed; an exception decides its outcome."""
    timing, started = StageTiming(), time.perf_counter()
    token = _timing.set(timing)
    try:
        yield timing
    except BaseException as error:
        timing.outcome = _outcome(error)
        raise
    finally:
        _timing.reset(token)
        labels = FEED_LATENCY.labels(stage, timing.source, timing.outcome)
        observe(labels, time.perf_counter() - started)


def came_from(source: str) -> None:
    """Says which source the candidates of the current stage came from."""
    if (timing := _timing.get()) is not None:
        timing.source = source


def post_visible(path: str, post_id: int) -> None:
    """Observes how old the post is, now that it can be found on that path."""
    observe(POST_VISIBLE.labels(path), max(now_ms() - created_ms(post_id), 0) / 1000)


def exposition() -> bytes:
    """All metrics of this process in the OpenMetrics text format."""
    text: bytes = generate_latest(REGISTRY)  # type: ignore[no-untyped-call]
    return text


def _exemplar() -> dict[str, str] | None:
    current = trace.get_current_span().get_span_context()
    if not current.trace_flags.sampled:
        return None
    return {"trace_id": trace.format_trace_id(current.trace_id)}


def _outcome(error: BaseException) -> str:
    if isinstance(error, asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, FeedError):
        if error.reason == "CANCELLED":
            return "cancelled"
        return "rejected" if error.http_status < 500 else "error"
    return "error"
