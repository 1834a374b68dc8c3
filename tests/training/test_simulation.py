"""A small world: what is written of it, and what may not be."""

import ast
import json
from bisect import bisect_right
from collections import defaultdict
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feed.v1.common_pb2 import CANDIDATE_SOURCE_SOCIAL

from ranker_svc.features import DENSE, similarities, topic_id
from stores.features.port import PostFeatures
from stores.log.parquet import ParquetLog
from stores.log.port import Kind
from stores.log.schemas import SCHEMAS
from training.simulation import history
from training.simulation.__main__ import simulate
from training.simulation.world import START_MS, Size, World

SEED = 3
SIZE = Size(users=90, authors=80, visits=0.8, posts=2.0)
PAGE = 20
EPSILON, POOL = 0.05, 10
KEYS = {
    "user_stats": ("user_id",),
    "post_stats": ("post_id",),
    "user_author_affinity": ("user_id", "author_id"),
}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder, seed=SEED, days=2, size=SIZE)
    return folder


@pytest.fixture(scope="module")
def served(out: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = ParquetLog(out / "log").read(Kind.SERVED).to_pylist()
    return rows


@pytest.fixture(scope="module")
def feeds(served: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in served:
        found[row["feed_id"]].append(row)
    return list(found.values())


def test_the_same_seed_gives_the_same_log_and_history(out: Path, tmp_path: Path) -> None:
    simulate(tmp_path, seed=SEED, days=2, size=SIZE)

    for kind in Kind:
        one, other = (ParquetLog(each / "log").read(kind) for each in (out, tmp_path))
        assert one.num_rows
        assert one.equals(other)
    for view in KEYS:
        assert _history(out, view).equals(_history(tmp_path, view))
    assert (out / "world.json").read_text() == (tmp_path / "world.json").read_text()


def test_the_log_has_what_was_counted(out: Path) -> None:
    said = json.loads((out / "world.json").read_text())
    log = ParquetLog(out / "log")

    assert len(log.read(Kind.SERVED)["feed_id"].unique()) == said["feeds"]
    assert log.read(Kind.IMPRESSIONS).num_rows == said["impressions"]
    assert log.read(Kind.ENGAGEMENTS).num_rows == said["likes"] > 0
    assert {day.toordinal() - 719163 for day in log.days(Kind.SERVED)} == {
        START_MS // 86_400_000,
        START_MS // 86_400_000 + 1,
    }


def test_whatever_is_shown_or_liked_was_served_before(out: Path) -> None:
    log = ParquetLog(out / "log")
    places = {(row["feed_id"], row["position"]): row for row in log.read(Kind.SERVED).to_pylist()}
    shown: dict[tuple[int, int], list[datetime]] = defaultdict(list)
    for row in log.read(Kind.IMPRESSIONS).to_pylist():
        place = places[row["feed_id"], row["position"]]
        assert (place["post_id"], place["author_id"]) == (row["post_id"], row["author_id"])
        assert place["served_at"] < row["seen_at"]
        shown[row["user_id"], row["post_id"]].append(row["seen_at"])
    likes = log.read(Kind.ENGAGEMENTS).to_pylist()
    assert len({(row["user_id"], row["post_id"]) for row in likes}) == len(likes)
    for row in likes:
        assert min(shown[row["user_id"], row["post_id"]]) < row["at"]


def test_pages_keep_the_rules(feeds: list[list[dict[str, Any]]]) -> None:
    checked = 0
    for feed in feeds:
        page = feed[:PAGE]
        authors = [row["author_id"] for row in page]
        strangers = sum(row["source"] != CANDIDATE_SOURCE_SOCIAL for row in page)
        assert [row["position"] for row in feed] == list(range(len(feed)))
        assert feed[0]["user_id"] not in authors
        assert max(map(authors.count, authors)) <= 2
        assert all(one != other for one, other in pairwise(authors))
        # The share bends where too few authors of one kind are left.
        kinds = [
            {row["author_id"] for row in feed if (row["source"] == CANDIDATE_SOURCE_SOCIAL) is kind}
            for kind in (True, False)
        ]
        if min(map(len, kinds)) >= 12:
            assert 0.2 * PAGE <= strangers <= 0.6 * PAGE
            checked += 1
    assert checked


def test_chance_takes_a_place_as_often_as_the_propensities_say(
    served: list[dict[str, Any]],
) -> None:
    expected, variance, drawn = 0.0, 0.0, 0
    for row in served:
        size = len(row["pool"])
        assert 1 <= size <= POOL
        assert row["post_id"] in row["pool"]
        is_best = row["post_id"] == row["pool"][0]
        likely = EPSILON / size + (1 - EPSILON) * is_best
        assert row["propensity"] == pytest.approx(likely)
        other = EPSILON * (size - 1) / size
        expected, variance = expected + other, variance + other * (1 - other)
        drawn += not is_best
    assert abs(drawn - expected) < 5 * variance**0.5


def test_features_are_what_the_history_says_of_that_moment(
    out: Path, served: list[dict[str, Any]]
) -> None:
    users, posts, pairs = (_Lookup(_history(out, view), KEYS[view]) for view in KEYS)
    chosen = np.random.default_rng(0).choice(len(served), 300, replace=False)
    unknown: dict[str, Any] = {
        "follower_count": 0,
        "avg_engagement_rate": 0.0,
        "interest_vector_json": None,
    }
    for row in (served[at] for at in chosen):
        at = row["served_at"]
        user = users.at((row["user_id"],), at) or unknown
        post = posts.at((row["post_id"],), at)
        pair = pairs.at((row["user_id"], row["author_id"]), at) or {"affinity_score": 0.0}
        assert post is not None
        assert post["author_id"] == row["author_id"]
        assert topic_id(post["topic"]) == row["topic"]
        assert {
            "affinity": np.float32(pair["affinity_score"]),
            "like_count": np.float32(post["like_count"]),
            "has_media": np.float32(post["has_media"]),
            "reader_follower_count": np.float32(user["follower_count"]),
            "reader_avg_engagement_rate": np.float32(user["avg_engagement_rate"]),
        }.items() <= row.items()
        embedding = np.array(json.loads(post["embedding_json"]), np.float32)
        interest = user.get("interest_vector_json")
        [similar] = similarities(
            None if interest is None else np.array(json.loads(interest), np.float32),
            [PostFeatures(0, 0, False, 0, embedding)],
        )
        # A product of one row is summed in another order than one of many.
        assert row["topic_similarity"] == pytest.approx(float(similar), abs=1e-6)


def test_no_two_changes_of_an_entity_have_the_same_time_nor_a_feeds(
    out: Path, served: list[dict[str, Any]]
) -> None:
    times = {row["served_at"] for row in served}
    for view, keys in KEYS.items():
        rows = _history(out, view)
        entities = rows.select([*keys, "event_timestamp"]).group_by([*keys, "event_timestamp"])
        assert entities.aggregate([]).num_rows == rows.num_rows
        assert not times & set(rows["event_timestamp"].to_pylist())


def test_the_history_has_the_columns_of_feasts_views() -> None:
    views = ast.parse((Path(__file__).parents[2] / "features" / "views.py").read_text())
    types = {
        "Int64": pa.int64(),
        "Float64": pa.float64(),
        "String": pa.string(),
        "Bool": pa.bool_(),
    }
    found: dict[str, dict[str, pa.DataType]] = {}
    for call in (node for node in ast.walk(views) if isinstance(node, ast.Call)):
        said = {each.arg: each.value for each in call.keywords}
        if isinstance(call.func, ast.Name) and call.func.id == "FeatureView":
            fields = [ast.unparse(each) for each in said["schema"].elts]  # type: ignore[attr-defined]
            found[ast.literal_eval(said["name"])] = {
                field.split("'")[1]: types[field.split("dtype=")[1].rstrip(")")] for field in fields
            }
    assert found.keys() == history.SCHEMAS.keys()
    for view, columns in found.items():
        schema = history.SCHEMAS[view]
        assert columns.items() <= dict(zip(schema.names, schema.types, strict=True)).items()


def test_hidden_tastes_are_nowhere_in_what_is_written(out: Path) -> None:
    hidden = [
        value
        for name, value in vars(World(SEED, SIZE)).items()
        if name.startswith("_") and isinstance(value, np.ndarray) and value.dtype == float
    ]
    assert len(hidden) >= 6
    state = (out / "state.pickle").read_bytes()
    assert not any(each[:1].tobytes() in state for each in hidden if each[:1].nbytes > 8)
    assert all(each[:4].tobytes() not in state for each in hidden)
    said = json.loads((out / "world.json").read_text())
    assert not any(isinstance(value, list | dict) for value in said.values())
    for kind in Kind:
        assert ParquetLog(out / "log").read(kind).schema.names == SCHEMAS[kind].names
    for view in KEYS:
        assert _history(out, view).schema.names == history.SCHEMAS[view].names
    assert set(DENSE) < set(SCHEMAS[Kind.SERVED].names)


class _Lookup:
    """The newest row of an entity that is older than a moment."""

    def __init__(self, rows: pa.Table, keys: tuple[str, ...]) -> None:
        self._rows: dict[tuple[int, ...], list[dict[str, Any]]] = defaultdict(list)
        for row in rows.sort_by("event_timestamp").to_pylist():
            self._rows[tuple(row[key] for key in keys)].append(row)

    def at(self, key: tuple[int, ...], moment: datetime) -> dict[str, Any] | None:
        rows = self._rows[key]
        count = bisect_right(rows, moment, key=lambda row: row["event_timestamp"])
        return rows[count - 1] if count else None


def _history(out: Path, view: str) -> pa.Table:
    files = sorted((out / "feast" / "offline" / view).glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files])
