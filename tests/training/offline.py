"""Feast's offline values, as it keeps them: a folder of Parquet files a view."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

_TIME = ("event_timestamp", pa.timestamp("us", tz="UTC"))
SCHEMAS = {
    "user_stats": pa.schema(
        [
            ("user_id", pa.int64()),
            ("follower_count", pa.int64()),
            ("avg_engagement_rate", pa.float64()),
            ("interest_vector_json", pa.string()),
            _TIME,
        ]
    ),
    "post_stats": pa.schema(
        [
            ("post_id", pa.int64()),
            ("like_count", pa.int64()),
            ("has_media", pa.bool_()),
            ("author_id", pa.int64()),
            ("embedding_json", pa.string()),
            ("topic", pa.string()),
            _TIME,
        ]
    ),
    "user_author_affinity": pa.schema(
        [
            ("user_id", pa.int64()),
            ("author_id", pa.int64()),
            ("affinity_score", pa.float64()),
            _TIME,
        ]
    ),
}


def add(data: Path, view: str, *rows: Mapping[str, Any], without: str = "") -> None:
    """Adds a file of rows; without a column, as one from before that was there."""
    table = pa.Table.from_pylist([dict(row) for row in rows], SCHEMAS[view])
    folder = data / "offline" / view
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.drop([without] if without else []), folder / f"{uuid4().hex}.parquet")
