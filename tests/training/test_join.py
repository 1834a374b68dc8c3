"""Our join of past values gives what Feast's own gives, where that is exact."""

import asyncio
import os
from datetime import timedelta
from pathlib import Path
from random import Random

import pyarrow.parquet as pq
import pytest

from mesh.settings import Settings
from stack import environments, feast
from tests.training.logs import NOON
from tests.training.offline import add
from training.simulation.history import SCHEMAS

pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]

# Runs where Feast is. Ids are small: Feast's own join makes floats of some.
_BOTH = """
import sys, tempfile
import pandas as pd
from feast import FeatureStore
from feast.infra.offline_stores.dask import DaskOfflineStore
from feast.repo_config import RegistryConfig, load_repo_config
from pathlib import Path
from entities import author, post, user
from views import post_stats, user_author_affinity, user_stats
import parquet_folders

config = load_repo_config(Path.cwd(), Path("feature_store.yaml"))
config.registry_config = RegistryConfig(path=tempfile.mkdtemp() + "/registry.db")
store = FeatureStore(config=config)
store.apply([user, post, author, user_stats, post_stats, user_author_affinity])
asked = pd.DataFrame({
    "post_id": [n % 7 for n in range(300)],
    "user_id": [n % 5 for n in range(300)],
    "author_id": [n % 3 for n in range(300)],
    "row": range(300),
    "event_timestamp": pd.Timestamp(sys.argv[1])
        + pd.to_timedelta([n * 37 % 300 for n in range(300)], "min"),
})
wanted = ["post_stats:like_count", "post_stats:topic", "user_author_affinity:affinity_score"]
names = [name.replace(":", "__") for name in wanted]

def joined():
    found = store.get_historical_features(asked, wanted, full_feature_names=True).to_df()
    found = found.sort_values("row").reset_index(drop=True)[names].astype(object)
    return found.where(found.notna(), None)

ours = joined()
parquet_folders.ParquetFoldersOfflineStore.get_historical_features = staticmethod(
    DaskOfflineStore.get_historical_features)
theirs = joined()
same = (ours == theirs) | (ours.isna() & theirs.isna())
print("compared", same.size, "different", int((~same).to_numpy().sum()),
      "missing", int(ours.isna().to_numpy().sum()))
"""


async def in_feast(data: Path, script: str, *arguments: str) -> str:
    """Runs it where Feast is; returns what it printed."""
    cache = Settings().stack_cache.expanduser()
    python = await environments.python(cache, feast.ENVIRONMENT)
    process = await asyncio.create_subprocess_exec(
        *(str(python), "-W", "ignore", "-c", script, *arguments),
        cwd=feast.REPOSITORY,
        env={
            **os.environ,
            "FEED_FEAST_PROJECT": "feedmesh",
            "FEED_FEAST_DATA": str(data),
            "FEED_FEAST_REDIS": "localhost:0",
            "PYTHONPATH": str(feast.REPOSITORY),
        },
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    assert process.returncode == 0
    return printed.decode()


async def test_our_join_agrees_with_feast_s_own(tmp_path: Path) -> None:
    chance = Random(3)
    # No two of one time: which of those is taken is nobody's promise.
    minutes = chance.sample(range(-500, 300), 180)
    for start in range(0, 180, 60):
        times = [NOON + timedelta(minutes=n) for n in minutes[start : start + 60]]
        posts = [
            {
                "post_id": chance.randrange(6), "like_count": n, "has_media": True,
                "author_id": 1, "embedding_json": None, "topic": chance.choice(["tea", ""]),
                "event_timestamp": at,
            }
            for n, at in enumerate(times)
        ]  # fmt: skip
        pairs = [
            {
                "user_id": chance.randrange(5), "author_id": chance.randrange(3),
                "affinity_score": n / 64, "event_timestamp": at,
            }
            for n, at in enumerate(times)
        ]  # fmt: skip
        add(tmp_path, "post_stats", *posts)
        add(tmp_path, "user_author_affinity", *pairs)
    add(tmp_path, "user_stats")
    words = (await in_feast(tmp_path, _BOTH, NOON.isoformat())).split()[-6:]
    assert words[:4] == ["compared", "900", "different", "0"]
    assert 0 < int(words[5]) < 900


async def test_a_start_gives_old_files_the_new_columns(tmp_path: Path) -> None:
    old = {
        "post_id": 1 << 62 | 1, "like_count": 4, "has_media": True, "author_id": 5,
        "embedding_json": None, "event_timestamp": NOON,
    }  # fmt: skip
    add(tmp_path, "post_stats", old, without="topic")
    add(tmp_path, "post_stats", {**old, "like_count": 5, "topic": "tea"})

    for _ in range(2):
        await in_feast(
            tmp_path,
            "import parquet_folders as p, views; p.add_columns(views.post_stats)",
        )

    found = [pq.read_table(file) for file in (tmp_path / "offline" / "post_stats").iterdir()]
    rows = {row["like_count"]: row for table in found for row in table.to_pylist()}
    assert rows == {4: {**old, "topic": None}, 5: {**old, "like_count": 5, "topic": "tea"}}
    assert [set(table.schema.names) for table in found] == [set(SCHEMAS["post_stats"].names)] * 2
