"""How good scores are: by what readers did, with intervals, and only NumPy.

Every measure is a mean, or a ratio of means, over readers; an interval comes from drawing as many
readers anew, with replacement. Readers are drawn whole, because one reader's showings are alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from training.examples import Examples

AT = 20
BINS = 15
DRAWS = 200

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Measures:
    """Of one model.

    Args:
        auc: How likely a liked showing is above one that was not liked.
        logloss: Mean log loss of the probability of a like.
        ece: Mean distance, over equally full bins, of probability and share of likes.
        ndcg20: NDCG of the first 20 of a feed's shown posts, ordered anew; feeds with a like.
        user_auc: Mean of the readers' own AUCs, of those with likes and others.
    """

    auc: Estimate
    logloss: Estimate
    ece: Estimate
    ndcg20: Estimate
    user_auc: Estimate


@dataclass(frozen=True, slots=True)
class Scores:
    """What a model says of the examples.

    Args:
        rank: By which it orders; any numbers, (n,).
        like: Probability of a like, (n,).
    """

    rank: Floats
    like: Floats


def model_scores(outputs: NDArray[np.float32]) -> Scores:
    """Of a model's outputs, (n, 3): it orders by the final score."""
    return Scores(outputs[:, 0].astype(np.float64), outputs[:, 1].astype(np.float64))


# From how often each reader is counted to the measure.
_Measure = Callable[[Floats], float]


class Evaluation:
    """Measures models on the same examples and the same draws of readers.

    Args:
        examples: With likes and others.
        seed: Of the draws.
        draws: How many.
    """

    def __init__(self, examples: Examples, seed: int = 0, draws: int = DRAWS) -> None:
        readers, self._reader = np.unique(examples.reader, return_inverse=True)
        self._examples = examples
        self._count = len(readers)
        random = np.random.default_rng(seed)
        even = np.full(self._count, 1 / self._count)
        self._draws = [
            np.ones(self._count),
            *random.multinomial(self._count, even, draws).astype(np.float64),
        ]

    def measures(self, scores: Scores) -> Measures:
        """All of them."""
        like = self._examples.like
        losses = log_losses(scores.like, like)
        feeds, gains = ndcgs(scores.rank, like, self._examples.feed)
        whose = self._reader[feeds]
        readers, aucs = self._user_aucs(scores.rank)
        return Measures(
            auc=self.auc(scores.rank),
            logloss=self._mean(self._reader, losses),
            ece=_estimate(self._values(self._ece(scores.like))),
            ndcg20=self._mean(whose, gains),
            user_auc=self._mean(readers, aucs),
        )

    def auc(self, rank: Floats) -> Estimate:
        """AUC alone."""
        return _estimate(self._values(self._auc(rank)))

    def auc_gain(self, one: Floats, other: Floats) -> Estimate:
        """AUC of one order less that of another, on the same draws."""
        gains = self._values(self._auc(one)) - self._values(self._auc(other))
        return _estimate(gains)

    def _auc(self, rank: Floats) -> _Measure:
        order = np.argsort(rank, kind="stable")
        ordered = rank[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        liked, whose = self._examples.like[order] > 0, self._reader[order]

        def measure(weights: Floats) -> float:
            weight = weights[whose]
            return _auc_of_groups(
                np.add.reduceat(weight * liked, starts), np.add.reduceat(weight * ~liked, starts)
            )

        return measure

    def _ece(self, probability: Floats) -> _Measure:
        bins = equal_bins(probability)
        gap = probability - self._examples.like

        def measure(weights: Floats) -> float:
            weight = weights[self._reader]
            gaps = np.bincount(bins, weight * gap)
            return float(np.abs(gaps).sum() / weight.sum())

        return measure

    def _user_aucs(self, rank: Floats) -> tuple[Ints, Floats]:
        order = np.argsort(self._reader, kind="stable")
        bounds = np.searchsorted(self._reader[order], np.arange(self._count + 1))
        readers, aucs = [], []
        for reader, (start, stop) in enumerate(pairwise(bounds)):
            rows = order[start:stop]
            liked = self._examples.like[rows] > 0
            if liked.any() and not liked.all():
                readers.append(reader)
                aucs.append(auc(rank[rows], liked))
        return np.array(readers, np.int64), np.array(aucs)

    def _mean(self, whose: Ints, values: Floats) -> Estimate:
        sums = np.bincount(whose, values, self._count)
        counts = np.bincount(whose, minlength=self._count)

        def measure(weights: Floats) -> float:
            return float(weights @ sums / (weights @ counts))

        return _estimate(self._values(measure))

    def _values(self, measure: _Measure) -> Floats:
        # A draw may have nobody with a like: it says nothing of the measure.
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.array([measure(weights) for weights in self._draws])


def auc(rank: Floats, liked: NDArray[np.bool_]) -> float:
    """Share of pairs of a liked and another that are in the right order; a tie counts half."""
    group = np.unique(rank, return_inverse=True)[1]
    good = _sums(group, liked)
    return _auc_of_groups(good, _sums(group, ~liked))


def log_losses(probability: Floats, label: NDArray[np.float32]) -> Floats:
    """Of each row; probabilities are kept 1e-7 away from 0 and 1."""
    kept = np.clip(probability, 1e-7, 1 - 1e-7)
    losses: Floats = -np.where(label > 0, np.log(kept), np.log1p(-kept))
    return losses


def equal_bins(values: Floats) -> Ints:
    """Numbers of up to `BINS` bins with about as many values each; equal values share one."""
    edges = np.quantile(values, np.arange(1, BINS) / BINS)
    return np.searchsorted(edges, values, side="right").astype(np.int64)


def ndcgs(rank: Floats, label: NDArray[np.float32], feed: Ints) -> tuple[Ints, Floats]:
    """NDCG at `AT` of each feed with a like, ordered by rank, and a row of that feed.

    Of equal ranks the mean gain over their orders counts, so that no order of rows is favoured.
    """
    gain = _tied_gain(rank, label, feed)
    found, ideal = _discounted(rank, gain, feed), _discounted(label, label, feed)
    rows = np.unique(feed, return_index=True)[1]
    has_like = ideal > 0
    return rows[has_like].astype(np.int64), found[has_like] / ideal[has_like]


def _tied_gain(rank: Floats, label: NDArray[np.float32], feed: Ints) -> Floats:
    order = np.lexsort((rank, feed))
    changes = (np.diff(rank[order]) != 0) | (np.diff(feed[order]) != 0)
    group = np.empty(len(order), np.int64)
    group[order] = np.cumsum(np.r_[0, changes])
    means: Floats = _sums(group, label) / np.bincount(group)
    return means[group]


def _discounted(rank: NDArray[np.floating], gain: NDArray[np.floating], feed: Ints) -> Floats:
    order = np.lexsort((-rank, feed))
    _, start, group = np.unique(feed[order], return_index=True, return_inverse=True)
    place = np.arange(len(order)) - start[group]
    discount = np.where(place < AT, 1 / np.log2(place + 2), 0)
    return _sums(group, gain[order] * discount)


def _sums(group: Ints, values: NDArray[np.floating] | NDArray[np.bool_]) -> Floats:
    return np.bincount(group, values.astype(np.float64)).astype(np.float64)


def _auc_of_groups(good: Floats, bad: Floats) -> float:
    below = np.cumsum(bad) - bad
    pairs = good.sum() * bad.sum()
    return float((good * (below + bad / 2)).sum() / pairs) if pairs else float("nan")


def _estimate(values: Floats) -> Estimate:
    low, high = np.nanquantile(values[1:], (0.025, 0.975))
    return Estimate(float(values[0]), float(low), float(high))
