"""Small logs of feeds."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from stores.log.port import Kind
from stores.log.schemas import SCHEMAS

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
# Floats have no such number: they would make it even.
READER = (1 << 62) + 1
POST = (1 << 61) + 1
AUTHOR = (1 << 60) + 1


def after(**how_long: float) -> datetime:
    return NOON + timedelta(**how_long)


def table(kind: Kind, *rows: Mapping[str, Any]) -> pa.Table:
    """Rows with an event id each, unless they say so."""
    numbered = [{"event_id": f"{kind}-{n}", **row} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(numbered, SCHEMAS[kind])


def served(**changes: Any) -> Mapping[str, Any]:
    return {
        "feed_id": "feed", "user_id": READER, "served_at": NOON, "model_version": "heuristic/1",
        "position": 0, "post_id": POST, "author_id": AUTHOR, "score": 0.25, "propensity": 0.5,
        "affinity": 0.0, "topic_similarity": 0.0, "age_hours": 3.5, "like_count": 0.0,
        "viewer_count": 7.0, "engagement_rate": 0.0625, "has_media": 0.0,
        "reader_follower_count": 0.0, "reader_avg_engagement_rate": 0.0, "source_social": 1.0,
        "source_discovery": 0.0, "source_popular": 0.0, "source_exploration": 0.0, "topic": 0,
        "source": 1, "hour": 12, **changes,
    }  # fmt: skip


def impression(**changes: Any) -> Mapping[str, Any]:
    return {
        "user_id": READER, "post_id": POST, "author_id": AUTHOR, "seen_at": after(seconds=1),
        "position": 0, "feed_id": "feed", "dwell_ms": 500, **changes,
    }  # fmt: skip


def engagement(action: str, at: datetime, **changes: Any) -> Mapping[str, Any]:
    return {
        "user_id": READER, "post_id": POST, "author_id": AUTHOR, "action": action, "at": at,
        **changes,
    }  # fmt: skip


def unit_vector(seed: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    vector = np.random.default_rng(seed).normal(size=384).astype(np.float32)
    return vector / np.linalg.norm(vector)
