"""What a policy's feeds are worth, with 95 % intervals. Pure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from training.simulation.world import Floats, Ints

# Parts that readers are divided into, by chance.
GROUPS = 20
TOP = 20


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over the visits of each group of readers; the first axis is the groups.

    Args:
        readers: Who came at all, (groups,).
        feeds: (groups,).
        likes: (groups,).
        ndcg: Sum over the feeds, (groups,).
        meetings: New authors that readers saw, each counted for each of them, (groups,).
        shown: How often each new post was on a screen, (groups, posts).
        exposure: How often a post of each author was, (groups, authors).
        newcomers: How many authors are new; the same number for each group, (groups,).
    """

    readers: Floats
    feeds: Floats
    likes: Floats
    ndcg: Floats
    meetings: Floats
    shown: Floats
    exposure: Floats
    newcomers: Floats

    def at(self, groups: NDArray[np.bool_]) -> "Tally":
        """Of these groups alone."""
        return Tally(*(getattr(self, each.name)[groups] for each in fields(self)))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value, and its 95 % interval."""

    value: float
    low: float
    high: float


Measure = Callable[[Tally], float]


def likes_per_feed(tally: Tally) -> float:
    return _ratio(tally.likes.sum(), tally.feeds.sum())


def ndcg(tally: Tally) -> float:
    """Mean over feeds, of the first 20 places; 1 would be the best posts there are."""
    return _ratio(tally.ndcg.sum(), tally.feeds.sum())


def coverage(tally: Tally) -> float:
    """Share of the new posts that anybody was shown."""
    return float((tally.shown.sum(0) > 0).mean()) if tally.shown.size else 0.0


def newcomers_seen(tally: Tally) -> float:
    """Share of the new authors that a reader saw a post of, mean over readers."""
    return _ratio(tally.meetings.sum(), float(tally.readers @ tally.newcomers))


def gini(tally: Tally) -> float:
    """How unequally authors are shown: 0 where all alike, towards 1 where one has it all."""
    exposure = np.sort(tally.exposure.sum(0))
    total = exposure.sum()
    if not total:
        return 0.0
    count = len(exposure)
    rank = np.arange(1, count + 1)
    return float(2 * (rank @ exposure) / (count * total) - (count + 1) / count)


MEASURES: Mapping[str, Measure] = {
    "likes/feed": likes_per_feed,
    "NDCG@20": ndcg,
    "coverage": coverage,
    "new authors": newcomers_seen,
    "Gini": gini,
}


def estimate(measure: Measure, tally: Tally, against: Tally | None = None) -> Estimate:
    """The measure, or how much more of it there is than of `against`'s.

    The interval is a jackknife's, which leaves out one group of readers after another: so it is
    paired where both had the same visits.
    """

    def difference(groups: NDArray[np.bool_]) -> float:
        other = measure(against.at(groups)) if against is not None else 0.0
        return measure(tally.at(groups)) - other

    count = len(tally.feeds)
    value = difference(np.ones(count, bool))
    without = np.array([difference(np.arange(count) != group) for group in range(count)])
    error = np.sqrt((count - 1) / count * ((without - without.mean()) ** 2).sum())
    return Estimate(value, value - 1.96 * error, value + 1.96 * error)


def discounted_gain(gains: Floats) -> float:
    """Of the first 20: each gain over log2(place + 1), places from 1."""
    gains = gains[:TOP]
    return float((gains / np.log2(np.arange(2, len(gains) + 2))).sum())


def best_gain(gains: Floats) -> float:
    """The same of the best order there is."""
    best = -np.partition(-gains, TOP)[:TOP] if len(gains) > TOP else gains
    return discounted_gain(-np.sort(-best))


def group_of(readers: int, seed: int) -> Ints:
    """The group of each reader, shape (readers,); groups are as good as equal in size."""
    return np.random.default_rng(seed).permutation(np.arange(readers) % GROUPS)


def _ratio(above: float, below: float) -> float:
    return float(above / below) if below else 0.0
