"""What chance chose in the log of feeds: places, their pools, and what readers did with them.

A place's post was drawn from its pool (hydrator_svc/rerank.py, docs/decisions/0021). It counts if
its reader saw it. Pure, but for the reading.
"""

from collections import defaultdict
from dataclasses import dataclass
from datetime import date
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ranker_svc.features import DENSE, Features
from stores.log.port import FeedLog, Kind

LIKED_WITHIN_MS = 24 * 3_600_000
_IDS = ("user_id", "author_id", "topic", "source", "hour")
_COLUMNS = ("feed_id", "user_id", "position", "post_id", "propensity", "pool", *DENSE, *_IDS[1:])
_SHOWN = ("feed_id", "user_id", "post_id")

Ids = NDArray[np.int64]
Chances = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Choices:
    """n places whose posts were drawn and seen.

    Args:
        features: Of m posts in feeds, as the ranker had them: every post of every pool.
        pool: Rows of `features`, best first as the log's policy had it; -1 where the pool is
            smaller; int64 (n, k).
        chosen: Which column of `pool` was drawn, int64 (n,).
        propensity: How likely that was, float64 (n,).
        position: The place in the feed, from 0; int32 (n,).
        reward: 1 where the reader liked the post within `LIKED_WITHIN_MS` of seeing it and left it
            at that, else 0; float32 (n,).
        reader: User ids, int64 (n,).
        feed: The same number for all places of a feed; int64 (n,).
    """

    features: Features
    pool: Ids
    chosen: Ids
    propensity: Chances
    position: NDArray[np.int32]
    reward: NDArray[np.float32]
    reader: Ids
    feed: Ids

    def __len__(self) -> int:
        return len(self.reward)

    @classmethod
    def read(cls, log: FeedLog, first: date | None = None, last: date | None = None) -> Self:
        """Those of feeds served on the days from `first` to `last`, both included.

        Places without a pool are left out, as are those of feeds without features, for those the
        ranker did not order.

        Raises:
            ValueError: There are none.
        """
        shown = _shown(log, first)
        likes = _Likes(log, first)
        days = [
            found
            for day in log.days(Kind.SERVED)
            if (first is None or first <= day) and (last is None or day <= last)
            if (found := cls._of_day(log, day, shown, likes)) is not None
        ]
        if not days:
            raise ValueError("no place of these days was drawn from a pool and seen")
        return cls._joined(days)

    @classmethod
    def _of_day(cls, log: FeedLog, day: date, shown: pa.Table, likes: "_Likes") -> Self | None:
        served = log.read(Kind.SERVED, day, day, _COLUMNS)
        served = served.filter(pc.is_valid(served[DENSE[0]])).combine_chunks()
        places, seen_at = _seen(served, shown)
        if not len(places):
            return None
        feed = np.asarray(served["feed_id"].combine_chunks().dictionary_encode().indices, np.int64)
        post = _numbers(served, "post_id")
        pool = _pool(served, places, feed, post)
        is_it = pool == places[:, None]
        # Else a post of the pool has no features, or the log contradicts itself.
        whole = is_it.any(axis=1) & ((pool >= 0).sum(axis=1) == _sizes(served, places))
        places, pool, is_it, seen_at = places[whole], pool[whole], is_it[whole], seen_at[whole]
        needed, renumbered = np.unique(pool[pool >= 0], return_inverse=True)
        pool[pool >= 0] = renumbered
        reader = _numbers(served, "user_id")[places]
        return cls(
            features=_features(served.take(pa.array(needed))),
            pool=pool,
            chosen=is_it.argmax(axis=1),
            propensity=_numbers(served, "propensity", np.float64)[places],
            position=_numbers(served, "position", np.int32)[places],
            reward=likes.of(reader, post[places], seen_at),
            reader=reader,
            feed=feed[places],
        )

    @classmethod
    def _joined(cls, days: list[Self]) -> Self:
        """Several days' as one: rows and feeds are numbered on."""
        rows = np.cumsum([0, *(len(each.features) for each in days)])
        feeds = np.cumsum([0, *(each.feed.max(initial=-1) + 1 for each in days)])
        width = max(each.pool.shape[1] for each in days)

        def pool(each: Self, before: int) -> Ids:
            wide = np.pad(each.pool, ((0, 0), (0, width - each.pool.shape[1])), constant_values=-1)
            return np.where(wide < 0, -1, wide + before)

        def column(name: str) -> NDArray[Any]:
            return np.concatenate([getattr(each, name) for each in days])

        return cls(
            features=Features(
                np.concatenate([each.features.dense for each in days]),
                np.concatenate([each.features.ids for each in days]),
            ),
            pool=np.concatenate([pool(*pair) for pair in zip(days, rows[:-1], strict=True)]),
            feed=np.concatenate([d.feed + n for d, n in zip(days, feeds[:-1], strict=True)]),
            **{
                name: column(name)
                for name in ("chosen", "propensity", "position", "reward", "reader")
            },
        )

    @property
    def epsilon(self) -> Chances:
        """How often chance chose, by each place's propensity; 0 to 1, float64 (n,)."""
        size = self.size
        by_best = (1 - self.propensity) * size / np.maximum(size - 1, 1)
        by_other = self.propensity * size
        return np.clip(np.where(self.chosen == 0, by_best, by_other), 0, 1)

    @property
    def size(self) -> Ids:
        """How many posts each pool has, int64 (n,)."""
        sizes: Ids = np.count_nonzero(self.pool >= 0, axis=1)
        return sizes

    def logged(self) -> Chances:
        """How likely each column of `pool` was, (n, k)."""
        return self._greedy(np.zeros(len(self), np.int64))

    def by_score(self, scores: NDArray[np.float32]) -> Chances:
        """How likely each column is where the best is so by these scores instead.

        Chance chooses as often, and from the same pool. Of equal scores the log's better one comes
        first, as in the order of a feed, and NaN comes last.

        Args:
            scores: Of the rows of `features`, (m,).
        """
        known = np.nan_to_num(scores, nan=-np.inf)[self.pool]
        # A column without a post is never the first of the greatest: the best one has number 0.
        known[self.pool < 0] = -np.inf
        return self._greedy(known.argmax(axis=1))

    def _greedy(self, best: Ids) -> Chances:
        drawn = self.epsilon / self.size
        chances = np.where(self.pool >= 0, drawn[:, None], 0)
        chances[np.arange(len(self)), best] += 1 - self.epsilon
        return chances


class _Likes:
    """Who liked what, and when.

    Args:
        log: Where that is.
        first: The earliest day that matters.
    """

    def __init__(self, log: FeedLog, first: date | None) -> None:
        found = log.read(
            Kind.ENGAGEMENTS, first, None, ["user_id", "post_id", "action", "at"]
        ).sort_by("at")
        columns = (found["user_id"], found["post_id"], found["action"])
        user, post, action = (column.to_pylist() for column in columns)
        at = _milliseconds(found["at"]).tolist()
        # What each reader did with each post, in order.
        self._acts: defaultdict[tuple[int, int], list[tuple[int, str]]] = defaultdict(list)
        for row, pair in enumerate(zip(user, post, strict=True)):
            self._acts[pair].append((at[row], action[row]))

    def of(self, reader: Ids, post: Ids, seen_at: Ids) -> NDArray[np.float32]:
        """1 where the last thing that the reader did in time after `seen_at` was to like it."""
        rows = zip(reader.tolist(), post.tolist(), seen_at.tolist(), strict=True)
        return np.array([self._liked(*row) for row in rows], np.float32)

    def _liked(self, reader: int, post: int, seen_at: int) -> bool:
        acts = self._acts.get((reader, post), [])
        in_time = [what for at, what in acts if 0 <= at - seen_at <= LIKED_WITHIN_MS]
        return in_time[-1:] == ["like"]


def _shown(log: FeedLog, first: date | None) -> pa.Table:
    """When each post of a feed was first seen."""
    found = log.read(Kind.IMPRESSIONS, first, None, [*_SHOWN, "seen_at"])
    return found.group_by(list(_SHOWN)).aggregate([("seen_at", "min")])


def _seen(served: pa.Table, shown: pa.Table) -> tuple[Ids, Ids]:
    """Rows whose post was drawn from a pool and seen, in order, and when (ms)."""
    keys = served.select(_SHOWN).append_column("row", pa.array(np.arange(len(served))))
    drawn = keys.filter(pc.greater(pc.list_value_length(served["pool"]), 0))
    found = drawn.join(shown, list(_SHOWN), join_type="inner").sort_by("row")
    return _numbers(found, "row"), _milliseconds(found["seen_at_min"])


def _sizes(served: pa.Table, places: Ids) -> Ids:
    return np.asarray(pc.list_value_length(served["pool"]).take(pa.array(places)), np.int64)


def _pool(served: pa.Table, places: Ids, feed: Ids, post: Ids) -> Ids:
    """Rows of `served` that each place was drawn from, -1 where there are none; (n, largest)."""
    sizes = _sizes(served, places)
    members = np.asarray(pc.list_flatten(served["pool"].take(pa.array(places))), np.int64)
    # A post is once in a feed: both together tell a row.
    posts, number = np.unique(post, return_inverse=True)
    key = feed * len(posts) + number
    order = np.argsort(key)
    found = np.minimum(np.searchsorted(posts, members), len(posts) - 1)
    wanted = np.repeat(feed[places], sizes) * len(posts) + found
    at = order[np.minimum(np.searchsorted(key, wanted, sorter=order), len(key) - 1)]
    at[(post[at] != members) | (key[at] != wanted)] = -1
    pool = np.full((len(places), int(sizes.max())), -1)
    pool[np.arange(pool.shape[1]) < sizes[:, None]] = at
    return pool


def _features(rows: pa.Table) -> Features:
    return Features(
        np.column_stack([_numbers(rows, name, np.float32) for name in DENSE]),
        np.column_stack([_numbers(rows, name) for name in _IDS]),
    )


def _numbers(table: pa.Table, name: str, dtype: Any = np.int64) -> NDArray[Any]:
    return np.asarray(pc.fill_null(table[name], 0).to_numpy(), dtype)


def _milliseconds(column: pa.ChunkedArray) -> Ids:
    return np.asarray(column.cast(pa.int64()).to_numpy(), np.int64)
