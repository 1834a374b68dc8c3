"""Examples that know the future are refused."""

import numpy as np
import pytest

from ranker_svc.features import CATEGORICAL, COLUMN, DENSE, Features
from training.examples import Examples
from training.leaks import auc, leaks

ROWS = 400
SERVED = np.full(ROWS, 1_000, np.int64)


def examples(seed: int = 1) -> Examples:
    chance = np.random.default_rng(seed)
    numbers = np.arange(ROWS)
    return Examples(
        features=Features(
            chance.normal(size=(ROWS, len(DENSE))).astype(np.float32),
            np.ones((ROWS, len(CATEGORICAL)), np.int64),
        ),
        like=(chance.random(ROWS) < 0.25).astype(np.float32),
        long_dwell=np.zeros(ROWS, np.float32),
        shown_at_ms=numbers,
        post=numbers,
        feed=numbers,
        position=np.zeros(ROWS, np.int32),
        score=np.ones(ROWS, np.float32),
        propensity=np.ones(ROWS, np.float32),
    )


def test_examples_of_values_from_before_have_no_leak() -> None:
    assert list(leaks(examples(), SERVED, SERVED)) == []
    # Where nothing was stored, and where an offline store does not tell.
    assert list(leaks(examples(), SERVED, np.full(ROWS, -1))) == []


def test_a_value_that_was_written_after_the_feed_was_served_is_a_leak() -> None:
    written = SERVED.copy()
    written[[7, 9]] += [1, 250]

    assert list(leaks(examples(), SERVED, written)) == [
        "2 rows have values from up to 250 ms after they were served"
    ]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_feature_that_was_made_of_the_likes_is_a_leak(sign: int) -> None:
    made = examples()
    made.features.dense[:, COLUMN["like_count"]] = sign * made.like

    [found] = leaks(made, SERVED, SERVED)

    assert found.startswith("like_count alone tells likes")


def test_a_feature_may_tell_much_of_the_likes() -> None:
    made = examples()
    noise = np.random.default_rng(2).normal(size=ROWS)
    made.features.dense[:, COLUMN["affinity"]] = 2 * made.like + noise

    assert auc(made.features.dense[:, COLUMN["affinity"]], made.like == 1) > 0.85
    assert list(leaks(made, SERVED, SERVED)) == []


def test_few_likes_are_told_apart_by_chance_too() -> None:
    made = examples().at(np.arange(60))
    made.features.dense[:, 0] = made.like

    assert list(leaks(made, SERVED[:60], SERVED[:60])) == []


def test_auc_counts_pairs_and_ties_by_half() -> None:
    values = np.array([1, 2, 2, 3], np.float32)

    assert auc(values, np.array([False, False, True, True])) == (1 + 0.5 + 1 + 1) / 4
    assert auc(np.zeros(4, np.float32), np.array([False, False, True, True])) == 0.5
