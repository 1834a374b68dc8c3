"""Whether training sees what serving saw: `python -m training.skew --log ROOT --feast DATA`.

Candidates at random from the log: each feature as logged when the feed was served, against the one
that Feast's historical values give for that time.
"""

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mesh.errors import FeedError, NotFound
from mesh.settings import Settings
from stores.log.parquet import ParquetLog
from stores.log.port import FeedLog, Kind
from training.dataset import SERVED, known, topics
from training.labels import Ints
from training.stored import Stored, stored

# What Feast stores; the rest of the features is of the request and the cache, and only logged.
COMPARED = (
    *("affinity", "topic_similarity", "like_count", "has_media"),
    *("reader_follower_count", "reader_avg_engagement_rate", "topic"),
)
# A product of vectors differs in its last digits with how many are multiplied at once.
_TOLERANCE = {"topic_similarity": 1e-6}


@dataclass(frozen=True, slots=True)
class Difference:
    """How one feature compares.

    Args:
        feature: Its name.
        rows: Numbers of the rows where it is not the same.
        largest: The largest absolute difference, of ids 1 for another one.
    """

    feature: str
    rows: Ints
    largest: float


def chosen(log: FeedLog, count: int, seed: int) -> pa.Table:
    """Served candidates at random, each as likely, that the ranker knew features of. Blocks."""
    served = known(log.read(Kind.SERVED, columns=SERVED))
    some = np.random.default_rng(seed).permutation(len(served))[:count]
    return served.take(np.sort(some))


def compare(rows: pa.Table, joined: Stored) -> list[Difference]:
    """Of each of `COMPARED`. Pure.

    Args:
        rows: Of the log.
        joined: What was stored, for each of the rows.
    """
    return [_compare(name, rows, joined) for name in COMPARED]


def _compare(name: str, rows: pa.Table, joined: Stored) -> Difference:
    logged = pc.fill_null(rows[name], 0).to_numpy()
    offline = topics(rows, joined) if name == "topic" else joined.columns[name]
    apart = (logged != offline).astype(np.float64)
    if name != "topic":
        apart = np.abs(logged.astype(np.float64) - offline)
    largest = float(apart.max()) if len(apart) else 0.0
    return Difference(name, np.flatnonzero(~(apart <= _TOLERANCE.get(name, 0.0))), largest)


def table(differences: Sequence[Difference], count: int) -> str:
    """As it is printed."""
    lines = [f"{'feature':<28}{'compared':>10}{'mismatches':>12}{'largest':>12}"]
    lines += [
        f"{each.feature:<28}{count:>10,}{len(each.rows):>12,}{each.largest:>12.2g}"
        for each in differences
    ]
    return "\n".join(lines)


def mismatched(differences: Sequence[Difference]) -> NDArray[np.int64]:
    """Numbers of the rows in which anything differs."""
    return np.unique(np.concatenate([each.rows for each in differences]))


async def report(log: Path, feast: Path, cache: Path, count: int, seed: int) -> int:
    """Prints it; returns in how many rows something differs.

    Raises:
        NotFound: The log has no candidates.
        FeedError: Feast's values cannot be had.
    """
    rows = await asyncio.to_thread(chosen, ParquetLog(log), count, seed)
    if not len(rows):
        raise NotFound(f"{log} has no candidates with features")
    joined = await stored(rows, feast, cache)
    differences = compare(rows, joined)
    print(table(differences, len(rows)))
    if unknown := int((~joined.topic_known).sum()):
        print(f"Feast has no topic for {unknown:,} of them: taken as logged.")
    bad = mismatched(differences)
    for row in bad[:10]:
        print(_described(rows, joined, differences, int(row)))
    print(f"{len(bad):,} mismatches of {len(rows):,}")
    return len(bad)


def _described(rows: pa.Table, joined: Stored, differences: Sequence[Difference], row: int) -> str:
    names = [each.feature for each in differences if row in each.rows]
    values = ", ".join(
        f"{name} logged {rows[name][row].as_py()} offline {joined.columns[name][row]}"
        for name in names
    )
    feed, post = rows["feed_id"][row].as_py(), rows["post_id"][row].as_py()
    return f"feed {feed} post {post}: {values}"


def main() -> None:
    """Exits with 1 when anything differs, and when there is nothing to compare."""
    parser = argparse.ArgumentParser(prog="python -m training.skew")
    parser.add_argument("--log", type=Path, required=True, help="root of a log of feeds")
    parser.add_argument("--feast", type=Path, required=True, help="FEED_FEAST_DATA of its Feast")
    parser.add_argument("--candidates", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1, help="chooses others")
    options = parser.parse_args()
    cache = Settings().stack_cache.expanduser()
    try:
        bad = asyncio.run(
            report(options.log, options.feast, cache, options.candidates, options.seed)
        )
    except FeedError as error:
        sys.exit(str(error))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
