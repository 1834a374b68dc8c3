"""Feast's offline store on Parquet files, a folder a view, to which a push adds a file.

Feast's own (`type: file`) has one file a view and writes all of it anew at each push: the time of a
push grows with the history, and a crash meanwhile leaves half a file.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureView, RepoConfig
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.types import from_feast_to_pyarrow_type


class ParquetFoldersOfflineStoreConfig(DaskOfflineStoreConfig):
    """`offline_store` in feature_store.yaml."""

    type: Literal["parquet_folders.ParquetFoldersOfflineStore"] = (
        "parquet_folders.ParquetFoldersOfflineStore"
    )


class ParquetFoldersOfflineStore(DaskOfflineStore):
    """Reads as its base does, which takes a folder for a file; writes add a file."""

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Adds the rows. The file is complete or not there at all."""
        add(
            folder(feature_view),
            table.select(schema(feature_view).names).cast(schema(feature_view)),
        )
        if progress:
            progress(table.num_rows)


def folder(view: FeatureView) -> Path:
    """Where the view's files are."""
    return Path(view.batch_source.path)


def schema(view: FeatureView) -> pa.Schema:
    """What its files have: join keys, features, and the time of both."""
    columns = [(field.name, from_feast_to_pyarrow_type(field.dtype)) for field in view.schema]
    return pa.schema([*columns, ("event_timestamp", pa.timestamp("us", tz="UTC"))])


def add(into: Path, table: pa.Table) -> None:
    """Adds a file to the folder, all at once; what begins with a dot is not read."""
    into.mkdir(parents=True, exist_ok=True)
    name = f"{uuid4().hex}.parquet"
    unfinished = into / f".{name}"
    pq.write_table(table, unfinished)
    with unfinished.open("rb") as written:
        os.fsync(written.fileno())
    unfinished.rename(into / name)


def add_columns(view: FeatureView) -> None:
    """A file without rows, unless there is one: Feast looks for a source's columns in its files."""
    if not any(folder(view).glob("[!.]*.parquet")):
        add(folder(view), schema(view).empty_table())


def compact(view: FeatureView) -> int:
    """Makes one file of the folder's; returns the rows. Not to be run twice at once.

    Rows that are there twice after a crash in between do no harm: Feast takes the newest of a key.
    """
    into = folder(view)
    files = sorted(into.glob("[!.]*.parquet"))
    table = pa.concat_tables([pq.read_table(file, schema=schema(view)) for file in files])
    if len(files) > 1:
        add(into, table.sort_by("event_timestamp"))
        for file in files:
            file.unlink()
    return int(table.num_rows)
