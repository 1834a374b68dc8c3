"""Values as they were: rows of entities with times from a Parquet file, their features to another.

For `training/`, by Feast's `get_historical_features`, so with any offline store.
"""

import argparse
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.repo_config import RegistryConfig, load_repo_config

from entities import author, post, user
from views import post_stats, user_author_affinity, user_stats

VIEWS = {view.name: view for view in (user_stats, post_stats, user_author_affinity)}
# Rows that are joined at once.
_ROWS = 500_000


def historical(store: FeatureStore, view: str, entities: Path, out: Path) -> None:
    """Writes the features of the file's rows, in its order.

    Args:
        store: Which has the definitions.
        view: Name of the view.
        entities: Parquet file with the view's join keys and `event_timestamp`.
        out: Parquet file with the view's features, null where there was no value, and
            `<view>__event_timestamp`, when the value was written, if the offline store tells.
    """
    wanted = [f"{view}:{field.name}" for field in VIEWS[view].features]
    names = [f"{view}__{field.name}" for field in VIEWS[view].features]
    stamp = f"{view}__event_timestamp"
    found = []
    for start, batch in _numbered(entities):
        joined = store.get_historical_features(batch.to_pandas(), wanted, full_feature_names=True)
        # An offline store may give them in an order of its own.
        table = joined.to_arrow().sort_by("row").replace_schema_metadata(None)
        if len(table) != len(batch) or table["row"][0].as_py() != start:
            raise ValueError(f"{view}: {len(table)} rows for {len(batch)}")
        found.append(table.select([*names, *([stamp] if stamp in table.schema.names else [])]))
    if found:
        pq.write_table(pa.concat_tables(found).unify_dictionaries(), out, compression="zstd")


def _numbered(entities: Path) -> list[tuple[int, pa.Table]]:
    table = pq.read_table(entities)
    table = table.append_column("row", pa.array(range(len(table)), pa.int64()))
    return [(start, table.slice(start, _ROWS)) for start in range(0, len(table), _ROWS)]


def main() -> None:
    """All views whose entities are in the folder, as `<view>.parquet`; values go beside them."""
    parser = argparse.ArgumentParser(prog="historical")
    parser.add_argument("--folder", type=Path, required=True)
    options = parser.parse_args()
    folder = options.folder.resolve()
    os.chdir(Path(__file__).parent)
    config = load_repo_config(Path.cwd(), Path("feature_store.yaml"))
    with tempfile.TemporaryDirectory() as registry:
        # Of its own: the data may be somebody else's, or read-only.
        config.registry_config = RegistryConfig(path=f"{registry}/registry.db")
        store = FeatureStore(config=config)
        store.apply([user, post, author, *VIEWS.values()])
        for view in VIEWS:
            file = folder / f"{view}.parquet"
            if file.exists():
                historical(store, view, file, folder / f"{view}-values.parquet")


if __name__ == "__main__":
    main()
