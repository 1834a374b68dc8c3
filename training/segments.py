"""Where a model orders well and where not: AUC by parts of the test set, and by feature."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from feed.v1.common_pb2 import CandidateSource
from numpy.typing import NDArray

from ranker_svc.features import CATEGORICAL, COLUMN, DENSE, Features
from training.evaluation import Estimate, Evaluation, Scores, auc
from training.examples import Examples
from training.model import Model

# Below this many likes, or others, an AUC says little.
_LEAST = 50
_AGES_H = ((0, 1), (1, 6), (6, 24), (24, 72), (72, float("inf")))
_SOURCES = {
    int(number): name.removeprefix("CANDIDATE_SOURCE_").lower()
    for name, number in CandidateSource.items()
}
_ROWS = 20_000
_POINTS = 15


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the test set.

    Args:
        kind: What it is a part by.
        name: Which one.
        rows: How many showings.
        auc: By model.
    """

    kind: str
    name: str
    rows: int
    auc: Mapping[str, Estimate]


@dataclass(frozen=True, slots=True)
class Effect:
    """What the chance of a like does when one number is set for all rows.

    Args:
        name: Of DENSE.
        values: Quantiles that the test set has, (k,).
        like: Mean chance of a like, (k,).
    """

    name: str
    values: NDArray[np.float32]
    like: NDArray[np.float64]


def segments(
    test: Examples, train: Examples, scores: Mapping[str, Scores], models: tuple[str, ...]
) -> list[Segment]:
    """By source, age of the post and activity of the reader; those with enough likes."""
    found = []
    for kind, name, rows in (*_by_source(test), *_by_age(test), *_by_activity(test, train)):
        likes = int(test.like[rows].sum())
        if min(likes, int(rows.sum()) - likes) < _LEAST:
            continue
        evaluation = Evaluation(test.at(rows), draws=100)
        estimates = {model: evaluation.auc(scores[model].rank[rows]) for model in models}
        found.append(Segment(kind, name, int(rows.sum()), estimates))
    return found


def importances(model: Model, test: Examples) -> dict[str, float]:
    """How much AUC is lost when a column's values are dealt anew among the rows, by column."""
    random = np.random.default_rng(0)
    test = _some(test, random)
    liked = test.like > 0
    whole = auc(model.predict(test.features)[:, 1].astype(np.float64), liked)
    lost = {}
    for column, name in enumerate((*DENSE, *CATEGORICAL)):
        dense, ids = test.features.dense.copy(), test.features.ids.copy()
        if column < len(DENSE):
            dense[:, column] = random.permutation(dense[:, column])
        else:
            ids[:, column - len(DENSE)] = random.permutation(ids[:, column - len(DENSE)])
        predicted = model.predict(Features(dense, ids))[:, 1].astype(np.float64)
        lost[name] = whole - auc(predicted, liked)
    return lost


def effects(model: Model, test: Examples) -> list[Effect]:
    """Of each number that has more than two values."""
    test = _some(test, np.random.default_rng(0), 2_000)
    found = []
    for column, name in enumerate(DENSE):
        values = np.unique(
            np.quantile(test.features.dense[:, column], np.linspace(0.02, 0.98, _POINTS))
        )
        if len(values) < 3:
            continue
        like = []
        for value in values:
            dense = test.features.dense.copy()
            dense[:, column] = value
            like.append(model.predict(Features(dense, test.features.ids))[:, 1].mean())
        found.append(Effect(name, values.astype(np.float32), np.array(like, np.float64)))
    return found


_Parts = Iterator[tuple[str, str, NDArray[np.bool_]]]


def _by_source(test: Examples) -> _Parts:
    source = test.features.ids[:, CATEGORICAL.index("source")]
    for number in np.unique(source):
        yield "source", _SOURCES.get(int(number), str(number)), source == number


def _by_age(test: Examples) -> _Parts:
    age = test.features.dense[:, COLUMN["age_hours"]]
    for low, high in _AGES_H:
        name = f"{low} h +" if np.isinf(high) else f"{low}-{high} h"
        yield "age of the post", name, (age >= low) & (age < high)


def _by_activity(test: Examples, train: Examples) -> _Parts:
    """By how many showings the reader had in training: none, and thirds of the others."""
    readers, counts = np.unique(train.reader, return_counts=True)
    place = np.searchsorted(readers, test.reader).clip(max=len(readers) - 1)
    seen = np.where(readers[place] == test.reader, counts[place], 0)
    few, many = np.quantile(counts, (1 / 3, 2 / 3))
    kind = "posts shown to the reader in training"
    yield kind, "none", seen == 0
    yield kind, f"up to {few:,.0f}", (seen > 0) & (seen <= few)
    yield kind, f"up to {many:,.0f}", (seen > few) & (seen <= many)
    yield kind, "more", seen > many


def _some(test: Examples, random: np.random.Generator, rows: int = _ROWS) -> Examples:
    return test.at(random.permutation(len(test))[:rows])
