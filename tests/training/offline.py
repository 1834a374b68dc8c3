"""Feast's offline values, as it keeps them: a folder of Parquet files a view."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq

from training.simulation.history import SCHEMAS


def add(data: Path, view: str, *rows: Mapping[str, Any], without: str = "") -> None:
    """Adds a file of rows; without a column, as one from before that was there."""
    table = pa.Table.from_pylist([dict(row) for row in rows], SCHEMAS[view])
    folder = data / "offline" / view
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(table.drop([without] if without else []), folder / f"{uuid4().hex}.parquet")
