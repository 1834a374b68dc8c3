"""The log worker: what was served, shown and liked, kept as models are trained on it."""

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import numpy as np
import pyarrow as pa
from feed.v1.events_pb2 import EngagementEvent, ImpressionEvent, ServedFeedEvent
from numpy.typing import DTypeLike, NDArray
from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced

from mesh import metrics, telemetry
from mesh.errors import FeedError, InvalidArgument
from stores.events.port import Topic
from stores.leases.port import Leases
from stores.log.port import FeedLog, Kind
from stores.log.schemas import SCHEMAS
from workers.consumer import Delivery, stop_if_cancelled

_log = logging.getLogger(__name__)

LEASE = "log"
_EVERY_S = 3600.0
# What is delivered late has had its time when a day is closed.
_CLOSED_AFTER = timedelta(hours=1)
_ACTIONS = {EngagementEvent.ACTION_LIKED: "like", EngagementEvent.ACTION_UNLIKED: "unlike"}


class Log:
    """Appends events to the log of feeds, and keeps that in few files for some days.

    A batch whose commit was lost is appended again; who reads the log gets each event once.

    Args:
        log: What is written.
        leases: So that one of several workers tidies up.
        days: How long the log is kept.
    """

    group = "log"
    topics = (Topic.SERVED, Topic.IMPRESSIONS, Topic.ENGAGEMENTS)
    max_records = 500
    together = True

    def __init__(self, log: FeedLog, leases: Leases, days: int) -> None:
        self._feed_log = log
        self._leases = leases
        self._days = days
        self._holder = uuid4().hex

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Takes deliveries of one topic; returns when their rows are durable."""
        kind, rows = await asyncio.to_thread(_rows, deliveries)
        await self._feed_log.append(kind, rows)
        metrics.LOG_ROWS.labels(kind).inc(len(rows))

    async def tidy_forever(self) -> None:
        """Tidies up every hour, until cancelled."""
        while True:
            stop_if_cancelled()
            try:
                # Not released: it is what keeps the others from doing it all again this hour.
                with untraced():
                    is_mine = await self._leases.acquire(LEASE, self._holder, _EVERY_S * 0.9)
                if is_mine:
                    await self.tidy(datetime.now(UTC))
            except FeedError as error:
                _log.warning("could not tidy up the log of feeds: %s", error)
            await asyncio.sleep(_EVERY_S)

    async def tidy(self, now: datetime) -> None:
        """Makes one file of each closed day's, and forgets days that are too old."""
        with telemetry.span("tidy log"):
            forgotten = await self._feed_log.forget((now - timedelta(days=self._days)).date())
            joined = await self._feed_log.compact((now - _CLOSED_AFTER).date())
            telemetry.annotate({"feed.log.forgotten": forgotten, "feed.log.joined": joined})


def _rows(deliveries: Sequence[Delivery]) -> tuple[Kind, pa.Table]:
    """The rows of deliveries of one topic.

    Raises `InvalidArgument` when an event contradicts itself.
    """
    served: list[pa.Table] = []
    impressions: list[dict[str, object]] = []
    engagements: list[dict[str, object]] = []
    for each in deliveries:
        match each.event:
            case ServedFeedEvent():
                served.append(_served(each.record.event_id, each.event))
            case ImpressionEvent():
                impressions.append(_impression(each.record.event_id, each.event))
            case EngagementEvent():
                engagements.append(_engagement(each.record.event_id, each.event))
            case other:
                raise InvalidArgument(f"{type(other).__name__} is not for this log")
    if served:
        return Kind.SERVED, pa.concat_tables(served)
    if impressions:
        return Kind.IMPRESSIONS, pa.Table.from_pylist(impressions, SCHEMAS[Kind.IMPRESSIONS])
    return Kind.ENGAGEMENTS, pa.Table.from_pylist(engagements, SCHEMAS[Kind.ENGAGEMENTS])


def _served(event_id: str, event: ServedFeedEvent) -> pa.Table:
    """A row for each place of the feed's order."""
    try:
        post_ids = np.frombuffer(event.post_ids, "<i8")
        count = len(post_ids)
        columns: dict[str, object] = {
            "event_id": [event_id] * count,
            "feed_id": [event.feed_id] * count,
            "user_id": np.full(count, event.user_id),
            "served_at": np.full(count, event.served_at_ms),
            "model_version": [event.model_version] * count,
            "position": np.arange(count),
            "post_id": post_ids,
            "author_id": np.frombuffer(event.author_ids, "<i8"),
            "score": np.frombuffer(event.scores, "<f4"),
            "propensity": np.frombuffer(event.propensities, "<f4"),
            "pool": _pools(event, post_ids),
            "source": np.frombuffer(event.sources, "<i4"),
            **_matrix(event.dense, "<f4", event.dense_names, count),
        }
        ids = _matrix(event.ids, "<i8", event.id_names, count)
        columns |= {name: ids[name] for name in ("topic", "hour") if name in ids}
        return pa.Table.from_arrays(
            [
                pa.array(columns[field.name]).cast(field.type)
                if field.name in columns
                else pa.nulls(count, field.type)
                for field in SCHEMAS[Kind.SERVED]
            ],
            schema=SCHEMAS[Kind.SERVED],
        )
    except (ValueError, IndexError) as error:
        # Arrow's own errors are ValueErrors.
        raise InvalidArgument(f"the columns of a served feed do not fit: {error}") from error


def _pools(event: ServedFeedEvent, post_ids: NDArray[np.int64]) -> pa.Array:
    """The posts that each place was drawn from."""
    ends = np.cumsum(np.frombuffer(event.pool_sizes, "<u2"), dtype=np.int32)
    members = post_ids[np.frombuffer(event.pool, "<u2")]
    if len(members) != (ends[-1] if len(ends) else 0):
        raise ValueError(f"{len(members)} members of pools")
    offsets = np.concatenate([np.zeros(1, np.int32), ends])
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(members))


def _matrix(
    data: bytes, dtype: DTypeLike, names: Sequence[str], count: int
) -> dict[str, NDArray[np.generic]]:
    """Columns by name; none where the ranker was away."""
    if not names:
        return {}
    rows = np.frombuffer(data, dtype).reshape(count, len(names))
    return {name: rows[:, column] for column, name in enumerate(names)}


def _impression(event_id: str, event: ImpressionEvent) -> dict[str, object]:
    return {
        "event_id": event_id,
        "user_id": event.user_id,
        "post_id": event.post_id,
        "author_id": event.author_id,
        "seen_at": event.seen_at_ms,
        "position": event.position if event.HasField("position") else None,
        "feed_id": event.feed_id,
        "dwell_ms": event.dwell_ms if event.HasField("dwell_ms") else None,
    }


def _engagement(event_id: str, event: EngagementEvent) -> dict[str, object]:
    return {
        "event_id": event_id,
        "user_id": event.user_id,
        "post_id": event.post_id,
        "author_id": event.author_id,
        "action": _ACTIONS.get(event.action),
        "at": event.occurred_at_ms,
    }
