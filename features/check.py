"""Holds Feast's offline and online values, and the feature cache's, against one another.

For entities chosen at random from the cache. Prints each difference, and exits with 1 if any lasts.
A change that is on its way is none: what differs is looked at again, once the cache's changes are
pushed.
"""

import argparse
import json
import os
import random
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from feast import FeatureStore, FeatureView
from redis import Redis

from parquet_folders import ParquetFoldersOfflineStore
from views import post_stats, user_author_affinity, user_stats

VIEWS = {"user": user_stats, "post": post_stats, "affinity": user_author_affinity}
_UNPUSHED = "feature:unpushed:{all}"
_TRIES = 3
_PUSHED_WITHIN_S = 60

Key = tuple[int, ...]
Row = dict[str, Any]


@dataclass(frozen=True)
class Difference:
    """Two places that do not have the same value."""

    view: str
    key: Key
    feature: str
    values: dict[str, Any]

    def __str__(self) -> str:
        values = ", ".join(f"{place}={_short(value)}" for place, value in self.values.items())
        return f"{self.view} {self.key} {self.feature}: {values}"


def choose(cache: Redis, count: int, chance: random.Random) -> dict[str, list[Key]]:
    """Keys of entities by kind: users, posts, and pairs of users and authors, all as likely."""
    found: list[tuple[str, Key]] = []
    for kind in ("user", "post"):
        found += [(kind, (_id(key),)) for key in cache.scan_iter(f"feature:{kind}:*", count=1000)]
    for key in cache.scan_iter("feature:affinity:*", count=1000):
        found += [("affinity", (_id(key), int(author))) for author in cache.hkeys(key)]
    chosen: dict[str, list[Key]] = defaultdict(list)
    for kind, key in chance.sample(found, min(count, len(found))):
        chosen[kind].append(key)
    return chosen


def from_cache(cache: Redis, kind: str, keys: Sequence[Key]) -> list[Row]:
    """Each entity's features as the cache has them, or as they are when it is gone."""
    with cache.pipeline(transaction=False) as pipe:
        for key in keys:
            if kind == "affinity":
                pipe.hget(f"feature:affinity:{{{key[0]}}}", str(key[1]))
            else:
                pipe.hgetall(f"feature:{kind}:{{{key[0]}}}")
        found = pipe.execute()
    parse = {"user": _cached_user, "post": _cached_post, "affinity": _cached_pair}[kind]
    return [parse(each) for each in found]


def _cached_user(fields: dict[bytes, bytes]) -> Row:
    return {
        "follower_count": int(fields.get(b"follower_count", 0)),
        "avg_engagement_rate": float(fields.get(b"avg_engagement_rate", 0)),
        "interest_vector_json": fields.get(b"interest_vector"),
    }


def _cached_post(fields: dict[bytes, bytes]) -> Row:
    return {
        "like_count": int(fields.get(b"like_count", 0)),
        "has_media": fields.get(b"has_media") == b"1",
        "author_id": int(fields[b"author_id"]) if fields else 0,
        "embedding_json": fields.get(b"embedding"),
        "topic": fields.get(b"topic", b"").decode(),
    }


def _cached_pair(score: bytes | None) -> Row:
    return {"affinity_score": float(score or 0)}


def from_online(store: FeatureStore, view: FeatureView, keys: Sequence[Key]) -> list[Row]:
    """Each entity's features as the feature server gives them."""
    entities = [dict(zip(_join_keys(view), key, strict=True)) for key in keys]
    answer = store.get_online_features(_references(view), entities, full_feature_names=True)
    columns = answer.to_dict()
    return [
        {name: _plain(name, columns[f"{view.name}__{name}"][at]) for name in _names(view)}
        for at in range(len(keys))
    ]


def from_offline(store: FeatureStore, view: FeatureView, keys: Sequence[Key]) -> list[Row]:
    """Each entity's newest features, as `materialize` reads them.

    Not by get_historical_features: of a column of ids that is null for one entity, it makes floats.
    """
    job = ParquetFoldersOfflineStore.pull_latest_from_table_or_query(
        store.config,
        view.batch_source,
        _join_keys(view),
        _names(view),
        view.batch_source.timestamp_field,
        None,
    )
    newest = job.to_df()
    columns = [newest[name].tolist() for name in (*_join_keys(view), *_names(view))]
    width = len(_join_keys(view))
    known = {row[:width]: row[width:] for row in zip(*columns, strict=True)}
    return [
        {
            name: _plain(name, value)
            for name, value in zip(_names(view), known.get(key, ()), strict=False)
        }
        for key in keys
    ]


def compare(store: FeatureStore, cache: Redis, kind: str, keys: list[Key]) -> Iterator[Difference]:
    """What is not the same in all three places."""
    view = VIEWS[kind]
    places = {
        "cache": from_cache(cache, kind, keys),
        "online": from_online(store, view, keys),
        "offline": from_offline(store, view, keys),
    }
    for at, key in enumerate(keys):
        for name in _names(view):
            values = {place: rows[at].get(name) for place, rows in places.items()}
            if len(set(values.values())) > 1:
                yield Difference(view.name, key, name, values)


def pushed(cache: Redis) -> None:
    """Returns when all changes are pushed, or after a minute."""
    until = time.monotonic() + _PUSHED_WITHIN_S
    while (waiting := cache.zcard(_UNPUSHED)) and time.monotonic() < until:
        time.sleep(0.2)
    if waiting:
        print(f"{waiting} changes are not pushed after {_PUSHED_WITHIN_S} s")


def _names(view: FeatureView) -> list[str]:
    return [feature.name for feature in view.features]


def _join_keys(view: FeatureView) -> list[str]:
    # In the order of `choose`.
    return [name for name in ("user_id", "post_id", "author_id") if name in view.join_keys]


def _references(view: FeatureView) -> list[str]:
    return [f"{view.name}:{name}" for name in _names(view)]


def _plain(name: str, value: Any) -> Any:
    """The value as the cache has it: no pandas, and vectors packed."""
    if value is None or value is pd.NA or value != value:
        return None
    if name.endswith("_json"):
        return np.array(json.loads(value), "<f4").tobytes()
    return value.item() if isinstance(value, np.generic) else value


def _id(key: bytes) -> int:
    return int(key.decode().rpartition("{")[2].rstrip("}"))


def _short(value: Any) -> str:
    if isinstance(value, bytes):
        return f"a vector of {len(value) // 4} beginning with {np.frombuffer(value, '<f4')[:3]}"
    return repr(value)


def main() -> None:
    """Exits with 1 when something differs, and when there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="check")
    parser.add_argument("--entities", type=int, default=1_000)
    parser.add_argument("--cache", default=os.environ["FEED_FEAST_CACHE"], help="a Redis URL")
    parser.add_argument("--seed", type=int, help="chooses the same again")
    options = parser.parse_args()
    os.chdir(Path(__file__).parent)
    store, cache = FeatureStore("."), Redis.from_url(options.cache)
    pushed(cache)
    left = choose(cache, options.entities, random.Random(options.seed))
    counts = {VIEWS[kind].name: len(keys) for kind, keys in left.items()}
    differences: list[Difference] = []
    for _ in range(_TRIES):
        differences = [d for kind in left for d in compare(store, cache, kind, left[kind])]
        if not differences:
            break
        kinds = {view.name: kind for kind, view in VIEWS.items()}
        left = {
            kind: sorted({d.key for d in differences if kinds[d.view] == kind})
            for kind in {kinds[d.view] for d in differences}
        }
        pushed(cache)
    for difference in differences:
        print(difference)
    total = sum(counts.values())
    detail = ", ".join(f"{name} {count}" for name, count in counts.items())
    print(f"{total:,} entities ({detail}): {len(differences)} differences")
    sys.exit(1 if differences or not total else 0)


if __name__ == "__main__":
    main()
