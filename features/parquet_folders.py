"""Feast's offline store on Parquet files, a folder a view, to which a push adds a file.

Feast's own (`type: file`) has one file a view and writes all of it anew at each push: the time of a
push grows with the history, and a crash meanwhile leaves half a file.
"""

import os
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from feast import FeatureView, OnDemandFeatureView, RepoConfig
from feast.infra.offline_stores.dask import DaskOfflineStore, DaskOfflineStoreConfig
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.types import from_feast_to_pyarrow_type

_TIMESTAMP = "event_timestamp"


class ParquetFoldersOfflineStoreConfig(DaskOfflineStoreConfig):
    """`offline_store` in feature_store.yaml."""

    type: Literal["parquet_folders.ParquetFoldersOfflineStore"] = (
        "parquet_folders.ParquetFoldersOfflineStore"
    )


class ParquetFoldersOfflineStore(DaskOfflineStore):
    """Reads as its base does, which takes a folder for a file; writes add a file.

    Except values of the past: the base joins each row with all that its key ever had, makes floats
    of ids where one is missing, and does not tell from when a value is.
    """

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: pd.DataFrame,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
    ) -> RetrievalJob:
        """The newest row of a key that is not after the entity's time, nor older than the ttl.

        Also has `<view>__event_timestamp`, when that row was written. Full feature names only.
        """
        if not full_feature_names:
            raise ValueError("ask with full_feature_names=True")
        asked = _by_view(feature_refs)
        return AsOf(
            entity_df, [(view, asked[view.projection.name_to_use()]) for view in feature_views]
        )

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
    """Gives each file all of the view's columns, which Feast looks for; a file if there is none.

    Columns that came to the view after a file was written are null there.
    """
    files = sorted(folder(view).glob("[!.]*.parquet"))
    if not files:
        add(folder(view), schema(view).empty_table())
    for file in files:
        # Feast gives the columns in another order each time.
        if set(schema(view).names) - set(pq.read_schema(file).names):
            add(folder(view), pq.read_table(file, schema=schema(view)))
            file.unlink()


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


class AsOf(RetrievalJob):
    """Joins when its rows are asked for.

    Args:
        entities: With `event_timestamp`, in UTC, and join keys that are never null.
        wanted: Views, and names of their features.
    """

    def __init__(
        self, entities: pd.DataFrame, wanted: Sequence[tuple[FeatureView, Sequence[str]]]
    ) -> None:
        self._entities, self._wanted = entities, wanted

    @property
    def full_feature_names(self) -> bool:
        return True

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        return []

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        table = pa.Table.from_pandas(self._entities, preserve_index=False)
        for view, names in self._wanted:
            source = _history(view, names, self._entities[_TIMESTAMP])
            # Taken from by number, not merged: so integers remain what they are beside a null.
            rows = source.take(_newest(self._entities, source, view))
            for name in (*names, _TIMESTAMP):
                table = table.append_column(f"{view.name}__{name}", rows[name])
        return table

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        return self._to_arrow_internal(timeout).to_pandas()


def _by_view(references: Sequence[str]) -> dict[str, list[str]]:
    asked: dict[str, list[str]] = {}
    for reference in references:
        view, _, name = reference.partition(":")
        asked.setdefault(view, []).append(name)
    return asked


def _history(view: FeatureView, names: Sequence[str], times: pd.Series) -> pa.Table:
    """The view's rows that may be of use at these times, each vector's text but once."""
    columns = [*view.join_keys, *names, _TIMESTAMP]
    wanted = pa.schema([_compact(schema(view).field(name)) for name in columns])
    rows = [
        _read(file, wanted, times.min() - view.ttl, times.max())
        for file in sorted(folder(view).glob("[!.]*.parquet"))
    ]
    return pa.concat_tables(rows).unify_dictionaries() if rows else wanted.empty_table()


def _read(file: Path, wanted: pa.Schema, first: datetime, last: datetime) -> pa.Table:
    """Rows of a file from `first` to `last`; nulls in columns that it does not have."""
    time = ds.field(_TIMESTAMP)
    return ds.dataset(file, wanted).to_table(filter=(time >= first) & (time <= last))


def _compact(field: pa.Field) -> pa.Field:
    """Texts as numbers into a list of those that there are: vectors are some 5 kB."""
    if not pa.types.is_string(field.type):
        return field
    return field.with_type(pa.dictionary(pa.int32(), pa.string()))


def _newest(entities: pd.DataFrame, source: pa.Table, view: FeatureView) -> pa.Array:
    """Number of the row of the source for each of the entities, or null."""
    keys = list(view.join_keys)
    left = entities[[*keys, _TIMESTAMP]].assign(asked=np.arange(len(entities)))
    right = source.select([*keys, _TIMESTAMP]).to_pandas().assign(row=np.arange(len(source)))
    left[_TIMESTAMP] = left[_TIMESTAMP].astype(right[_TIMESTAMP].dtype)
    joined = pd.merge_asof(
        left.sort_values(_TIMESTAMP, kind="stable"),
        # Of rows of one time, the last that was written.
        right.sort_values(_TIMESTAMP, kind="stable"),
        on=_TIMESTAMP,
        by=keys,
        tolerance=pd.Timedelta(view.ttl) if view.ttl else None,
    ).sort_values("asked")
    return pa.array(joined["row"].astype("Int64"))
