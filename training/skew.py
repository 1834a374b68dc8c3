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
from training.labels import Ints, milliseconds
from training.stored import Stored, stored

# What Feast stores; the rest of the features is of the request and the cache, and only logged.
COMPARED = (
    *("affinity", "topic_similarity", "like_count", "has_media"),
    *("reader_follower_count", "reader_avg_engagement_rate", "topic"),
)
# A product of vectors differs in its last digits with how many are multiplied at once.
_TOLERANCE = {"topic_similarity": 1e-6}
# At how many times around a feed's a value is looked for.
_LOOKS = 21


@dataclass(frozen=True, slots=True)
class Asked:
    """What to compare.

    Args:
        log: Root of the log.
        feast: FEED_FEAST_DATA of the Feast that has the values.
        candidates: How many.
        seed: Chooses which.
        in_flight_s: How long before or after the feed a change of Feast's counts as in flight.
    """

    log: Path
    feast: Path
    candidates: int = 10_000
    seed: int = 1
    in_flight_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Difference:
    """How one feature compares.

    Args:
        feature: Its name.
        rows: Numbers of the rows where it is not the same, nor in flight.
        in_flight: Numbers of the rows where it is not the same, but changed around that time.
        largest: The largest absolute difference that there is, of ids 1 for another one.
    """

    feature: str
    rows: Ints
    in_flight: Ints
    largest: float


def chosen(log: FeedLog, count: int, seed: int) -> pa.Table:
    """Served candidates at random, each as likely, that the ranker knew features of. Blocks."""
    served = known(log.read(Kind.SERVED, columns=SERVED))
    some = np.random.default_rng(seed).permutation(len(served))[:count]
    return served.take(np.sort(some))


def compare(
    rows: pa.Table, joined: Stored, flying: NDArray[np.bool_] | None = None
) -> list[Difference]:
    """Of each of `COMPARED`. Pure.

    Args:
        rows: Of the log.
        joined: What was stored when each of them was served.
        flying: Where what was stored changed around that time, (len(COMPARED), n).
    """
    found = []
    for number, name in enumerate(COMPARED):
        apart = _apart(name, rows, joined)
        differs = ~(apart <= _TOLERANCE.get(name, 0.0))
        passing = differs & flying[number] if flying is not None else np.zeros(len(rows), bool)
        largest = float(apart.max()) if len(apart) else 0.0
        left = np.flatnonzero(differs & ~passing)
        found.append(Difference(name, left, np.flatnonzero(passing), largest))
    return found


async def _flying(
    rows: pa.Table, joined: Stored, some: Ints, asked: Asked, cache: Path
) -> NDArray[np.bool_]:
    """As `compare` takes it, with these rows looked at."""
    times = milliseconds(rows["served_at"])[some]
    shifts = np.linspace(-asked.in_flight_s, asked.in_flight_s, _LOOKS) * 1_000
    again = pa.concat_tables([rows.take(some)] * _LOOKS)
    moved = (times + shifts.round().astype(np.int64)[:, None]).reshape(-1)
    column = again.schema.get_field_index("served_at")
    field = again.schema.field(column)
    again = again.set_column(column, field, pa.array(moved).cast(field.type))
    near = await stored(again, asked.feast, cache)
    flying = np.zeros((len(COMPARED), len(rows)), bool)
    for number, name in enumerate(COMPARED):
        changed = near.columns[name].reshape(_LOOKS, -1) != joined.columns[name][some]
        flying[number, some] = changed.any(axis=0)
    return flying


def _apart(name: str, rows: pa.Table, joined: Stored) -> NDArray[np.float64]:
    """By how much each row's value differs."""
    logged = pc.fill_null(rows[name], 0).to_numpy()
    if name == "topic":
        # An id is another one or not, however near.
        return np.asarray(logged != topics(rows, joined), np.float64)
    return np.abs(np.asarray(logged, np.float64) - joined.columns[name])


def table(differences: Sequence[Difference], count: int) -> str:
    """As it is printed."""
    lines = [f"{'feature':<28}{'compared':>10}{'mismatches':>12}{'in flight':>11}{'largest':>10}"]
    lines += [
        f"{each.feature:<28}{count:>10,}{len(each.rows):>12,}"
        f"{len(each.in_flight):>11,}{each.largest:>10.2g}"
        for each in differences
    ]
    return "\n".join(lines)


def mismatched(differences: Sequence[Difference]) -> NDArray[np.int64]:
    """Numbers of the rows in which anything differs."""
    return np.unique(np.concatenate([each.rows for each in differences]))


async def report(asked: Asked, cache: Path) -> int:
    """Prints it; returns in how many rows something differs.

    Args:
        asked: What to compare.
        cache: Where Feast's environment is, or will be.

    Raises:
        NotFound: The log has no candidates.
        FeedError: Feast's values cannot be had.
    """
    log = ParquetLog(asked.log)
    rows = await asyncio.to_thread(chosen, log, asked.candidates, asked.seed)
    if not len(rows):
        raise NotFound(f"{asked.log} has no candidates with features")
    joined = await stored(rows, asked.feast, cache)
    differences = compare(rows, joined)
    if (some := mismatched(differences)).size:
        differences = compare(rows, joined, await _flying(rows, joined, some, asked, cache))
    print(table(differences, len(rows)))
    if unknown := int((~joined.topic_known).sum()):
        print(f"Feast has no topic for {unknown:,} of them: taken as logged.")
    bad = mismatched(differences)
    for row in bad[:10]:
        print(_described(rows, joined, differences, int(row)))
    flying = np.unique(np.concatenate([each.in_flight for each in differences]))
    print(f"{len(bad):,} mismatches of {len(rows):,}; {len(flying):,} in flight")
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
    parser.add_argument("--in-flight", type=float, default=10.0, metavar="SECONDS")
    options = parser.parse_args()
    asked = Asked(options.log, options.feast, options.candidates, options.seed, options.in_flight)
    cache = Settings().stack_cache.expanduser()
    try:
        bad = asyncio.run(report(asked, cache))
    except FeedError as error:
        sys.exit(str(error))
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
