"""Examples out of a log of feeds: `python -m training.dataset --log ROOT --feast DATA --out FILE`.

What Feast stores is joined as it was when the feed was served; what only the request knew, and what
the cache alone has, is as logged.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mesh.errors import FailedPrecondition, FeedError, NotFound
from mesh.settings import Settings
from ranker_svc.features import CATEGORICAL, DENSE, Features
from stores.log.parquet import ParquetLog
from stores.log.port import FeedLog, Kind
from training.examples import LONG_DWELL_MS, Examples
from training.labels import likes, milliseconds, showings
from training.leaks import leaks
from training.stored import Stored, stored

SERVED = (
    *("feed_id", "user_id", "served_at", "position", "post_id", "author_id"),
    *("score", "propensity", *DENSE, "topic", "source", "hour"),
)


def shown(log: FeedLog, begin: date | None = None, end: date | None = None) -> pa.Table:
    """The log's showings in the order of their times, with `like` and `dwell_ms`.

    Without those where the ranker was away: nothing is known of them.

    Args:
        log: The log. Blocks.
        begin: First day of the feeds.
        end: Last day of the feeds.
    """
    served = known(log.read(Kind.SERVED, begin, end, SERVED))
    wanted = ("user_id", "post_id", "seen_at", "feed_id", "dwell_ms")
    rows = showings(served, log.read(Kind.IMPRESSIONS, begin, None, wanted))
    acts = log.read(Kind.ENGAGEMENTS, begin, None, ("user_id", "post_id", "action", "at"))
    return rows.append_column("like", pa.array(likes(rows, acts)))


def known(served: pa.Table) -> pa.Table:
    """Rows that the ranker knew features and a score of."""
    return served.filter(pc.and_(served["age_hours"].is_valid(), served["score"].is_valid()))


def examples(rows: pa.Table, joined: Stored) -> Examples:
    """Pure.

    Args:
        rows: As `shown` gives them.
        joined: What was stored, for each of the rows.
    """
    dwell = rows["dwell_ms"].cast(pa.float32()).to_numpy()
    long = np.where(np.isnan(dwell), np.nan, dwell >= LONG_DWELL_MS).astype(np.float32)
    feeds = rows["feed_id"].combine_chunks().dictionary_encode().indices
    return Examples(
        features=features(rows, joined),
        like=rows["like"].to_numpy(),
        long_dwell=long,
        shown_at_ms=milliseconds(rows["seen_at"]),
        post=rows["post_id"].to_numpy(),
        feed=feeds.to_numpy().astype(np.int64),
        position=rows["position"].to_numpy(),
        score=rows["score"].to_numpy(),
        propensity=rows["propensity"].to_numpy(),
    )


def features(rows: pa.Table, joined: Stored) -> Features:
    """As a ranker that asked Feast would have had them."""
    dense = np.stack(
        [
            joined.columns[name] if name in joined.columns else rows[name].to_numpy()
            for name in DENSE
        ],
        axis=1,
    ).astype(np.float32)
    ids: Mapping[str, NDArray[np.int64]] = {
        "reader": rows["user_id"].to_numpy(),
        "author": rows["author_id"].to_numpy(),
        "topic": topics(rows, joined),
        "source": rows["source"].to_numpy(),
        "hour": rows["hour"].to_numpy(),
    }
    return Features(dense, np.stack([ids[name] for name in CATEGORICAL], axis=1).astype(np.int64))


def topics(rows: pa.Table, joined: Stored) -> NDArray[np.int64]:
    """The stored ones; as logged where the store is from before it had any."""
    logged = pc.fill_null(rows["topic"], 0).to_numpy()
    return np.where(joined.topic_known, joined.columns["topic"], logged).astype(np.int64)


async def build(log: Path, feast: Path, cache: Path) -> Examples:
    """All of a log's examples.

    Args:
        log: Root of the log.
        feast: FEED_FEAST_DATA of the Feast that has the values.
        cache: Where Feast's environment is, or will be.

    Raises:
        NotFound: The log shows nothing.
        FailedPrecondition: The examples know the future.
        FeedError: Feast's values cannot be had.
    """
    rows = await asyncio.to_thread(shown, ParquetLog(log))
    if not len(rows):
        raise NotFound(f"{log} has no feed that anybody was shown")
    joined = await stored(rows, feast, cache)
    made = await asyncio.to_thread(examples, rows, joined)
    if found := list(leaks(made, milliseconds(rows["served_at"]), joined.written_ms)):
        raise FailedPrecondition(f"The examples know the future: {'; '.join(found)}.")
    return made


def write(made: Examples, out: Path) -> None:
    """The file is complete or not there at all."""
    out.parent.mkdir(parents=True, exist_ok=True)
    unfinished = out.with_name(f".{out.name}-{os.getpid()}")
    try:
        made.write(unfinished)
        unfinished.rename(out)
    finally:
        unfinished.unlink(missing_ok=True)


def main() -> None:
    """Exits with 1 when there are no examples, and when they know the future."""
    parser = argparse.ArgumentParser(prog="python -m training.dataset")
    parser.add_argument("--log", type=Path, required=True, help="root of a log of feeds")
    parser.add_argument("--feast", type=Path, required=True, help="FEED_FEAST_DATA of its Feast")
    parser.add_argument("--out", type=Path, required=True, help="an .npz file")
    options = parser.parse_args()
    started = time.monotonic()
    cache = Settings().stack_cache.expanduser()
    try:
        made = asyncio.run(build(options.log, options.feast, cache))
    except FeedError as error:
        sys.exit(str(error))
    write(made, options.out)
    print(
        f"{options.out}: {len(made):,} examples of {len(np.unique(made.feed)):,} feeds, "
        f"{made.like.mean():.1%} liked, in {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
