"""Which posts readers were shown, and which of those they liked. Pure."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

# A like that comes later is not taken to be of this showing.
LIKED_WITHIN_MS = 24 * 3_600_000

Ints = NDArray[np.int64]


def showings(served: pa.Table, impressions: pa.Table) -> pa.Table:
    """Served rows of posts that the reader was shown, with `seen_at` and `dwell_ms`.

    Of a post that was shown several times in one feed, the first. Impressions that do not name a
    feed, or one that was not logged, are none of anybody's.

    Args:
        served: Rows of the log, one for each place of a feed.
        impressions: Rows of the log.
    """
    keys = ["user_id", "feed_id", "post_id"]
    named = impressions.filter(pc.not_equal(impressions["feed_id"], ""))
    shown = first(named.sort_by("seen_at"), keys).select([*keys, "seen_at", "dwell_ms"])
    # Arrow joins no columns of lists, so it joins their numbers.
    places = first(served, keys)
    numbered = places.select(keys).append_column("place", pa.array(np.arange(len(places))))
    joined = numbered.join(shown, keys, join_type="inner").sort_by("place")
    found = places.take(joined["place"])
    for name in ("seen_at", "dwell_ms"):
        found = found.append_column(name, joined[name])
    return found.sort_by(
        [("seen_at", "ascending"), ("feed_id", "ascending"), ("position", "ascending")]
    )


def first(table: pa.Table, keys: list[str]) -> pa.Table:
    """The first row of each key, in the order of the table."""
    numbered = table.select(keys).append_column("row", pa.array(np.arange(len(table))))
    rows = numbered.group_by(keys).aggregate([("row", "min")])["row_min"]
    return table.take(np.sort(rows.to_numpy()))


def likes(shown: pa.Table, engagements: pa.Table) -> NDArray[np.float32]:
    """1 for each showing that was followed by a like, else 0; shape (n,).

    A like belongs to the last showing of the post to the reader before it, if that was within 24
    hours. It does not count if it is taken back within 24 hours of the showing.

    Args:
        shown: Rows with `user_id`, `post_id`, `seen_at`.
        engagements: Rows of the log.
    """
    liked = np.zeros(len(shown), np.float32)
    wanted = pc.is_in(engagements["action"], pa.array(["like", "unlike"]))
    engagements = engagements.filter(wanted)
    if not len(shown) or not len(engagements):
        return liked
    seen, acted = _moments(shown, "seen_at"), _moments(engagements, "at")
    like = pc.equal(engagements["action"], "like").to_numpy()
    given, taken = acted.at(like), acted.at(~like)
    of = latest(seen, given)
    close = (of >= 0) & (given.times - seen.times[of] <= LIKED_WITHIN_MS)
    until = seen.times[of] + LIKED_WITHIN_MS
    # The last unlike until then: after the like, it takes it back.
    last = latest(taken, Moments(given.keys, until))
    undone = (last >= 0) & (taken.times[last] >= given.times) if len(taken) else last >= 0
    liked[of[close & ~undone]] = 1
    return liked


@dataclass(frozen=True, slots=True)
class Moments:
    """Times of something that happened to somebody.

    Args:
        keys: Who and what, int64 (n, k).
        times: Milliseconds, int64 (n,).
    """

    keys: Ints
    times: Ints

    def __len__(self) -> int:
        return len(self.times)

    def at(self, rows: NDArray[np.bool_]) -> "Moments":
        return Moments(self.keys[rows], self.times[rows])


def latest(past: Moments, asked: Moments) -> Ints:
    """For each asked, the number of the newest of the past with its keys, not after its time.

    Of the same time, the last. -1 where there is none.
    """
    keys = np.concatenate([past.keys, asked.keys])
    times = np.concatenate([past.times, asked.times])
    asks = np.arange(len(keys)) >= len(past)
    # Each key's moments together, by time; what is asked comes after what happened then.
    order = np.lexsort((asks, times, *keys.T))
    newest = np.maximum.accumulate(np.where(asks[order], -1, np.arange(len(order))))
    number = np.where(newest >= 0, order[newest], -1)
    same = (number >= 0) & (keys[number] == keys[order]).all(axis=1)
    found = np.empty(len(keys), np.int64)
    found[order] = np.where(same, number, -1)
    return found[len(past) :]


def milliseconds(column: pa.ChunkedArray) -> Ints:
    """Times as numbers, int64 (n,)."""
    return np.asarray(column.cast(pa.timestamp("ms", tz="UTC")).cast(pa.int64()).to_numpy())


def _moments(table: pa.Table, time: str) -> Moments:
    keys = np.stack([table["user_id"].to_numpy(), table["post_id"].to_numpy()], axis=1)
    return Moments(keys, milliseconds(table[time]))
