"""What was served, as an event: from it models learn, and other orders are judged."""

from collections.abc import Sequence

import numpy as np
from feed.v1 import common_pb2, events_pb2, hydrator_pb2, ranker_pb2
from numpy.typing import DTypeLike, NDArray

from gateway.snapshots import Snapshot
from stores.events import codec
from stores.events.port import Event, OutgoingRecord, Topic

_Order = NDArray[np.int64]


def record(
    snapshot: Snapshot,
    kept: common_pb2.Candidates,
    ranked: ranker_pb2.RankCandidatesResponse,
    ordered: hydrator_pb2.HydrateFeedResponse,
) -> OutgoingRecord:
    """The feed's event, with the trace context of whoever calls.

    Args:
        snapshot: Which feed, whose, and when.
        kept: What was ranked.
        ranked: The ranker's answer, for `kept`.
        ordered: The hydrator's answer, for `kept`.
    """
    order = np.array(ordered.order, np.int64)
    # Where each candidate came in the end.
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    message = events_pb2.ServedFeedEvent(
        feed_id=snapshot.feed_id,
        user_id=snapshot.reader_id,
        served_at_ms=snapshot.created_at_ms,
        model_version=snapshot.model_version,
        post_ids=_packed(kept.post_ids, "<i8", order),
        author_ids=_packed(kept.author_ids, "<i8", order),
        sources=_packed(kept.sources, "<i4", order),
        scores=_packed(ranked.scores, "<f4", order),
        propensities=_packed(ordered.propensities, "<f4"),
        pool_sizes=_packed(ordered.pool_sizes, "<u2"),
        pool=place[np.array(ordered.pool, np.int64)].astype("<u2").tobytes(),
        dense_names=ranked.dense_names,
        dense=_rows(ranked.dense, "<f4", len(ranked.dense_names), order),
        id_names=ranked.id_names,
        ids=_rows(ranked.ids, "<i8", len(ranked.id_names), order),
    )
    return codec.encode(Event(Topic.SERVED, snapshot.reader_id, message), snapshot.feed_id)


def _packed(values: Sequence[float], dtype: DTypeLike, order: _Order | None = None) -> bytes:
    column = np.array(values, dtype)
    return (column if order is None else column[order]).tobytes()


def _rows(data: bytes, dtype: DTypeLike, columns: int, order: _Order) -> bytes:
    """The rows of a matrix, in another order; none of none."""
    return np.frombuffer(data, dtype).reshape(-1, columns)[order].tobytes() if columns else b""
