"""Measures against values that are known otherwise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.training import planted
from training.evaluation import Evaluation, Scores, auc, equal_bins, log_losses, ndcgs

_few = st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40)


@given(_few)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    rank = np.array([value for value, _ in rows], np.float64)
    liked = np.array([is_liked for _, is_liked in rows])
    pairs = [
        0.5 if good == bad else float(good > bad) for good in rank[liked] for bad in rank[~liked]
    ]
    if pairs:
        assert auc(rank, liked) == pytest.approx(np.mean(pairs))
    else:
        assert np.isnan(auc(rank, liked))


def test_log_loss_of_a_half_is_the_logarithm_of_two_and_a_wrong_certainty_is_finite() -> None:
    losses = log_losses(np.array([0.5, 0.5, 1.0]), np.array([1, 0, 0], np.float32))
    assert losses[:2] == pytest.approx(np.log(2))
    assert np.isfinite(losses[2])


def test_ndcg_of_the_best_order_is_one_and_of_a_single_like_at_the_third_place_is_a_half() -> None:
    like = np.array([1, 0, 0, 0, 0, 1, 0, 0], np.float32)
    feed = np.array([7, 7, 7, 3, 3, 3, 9, 9])
    rank = np.array([3.0, 2, 1, 3, 2, 1, 2, 1])
    rows, gains = ndcgs(rank, like, feed)
    # The feed without a like says nothing.
    assert list(feed[rows]) == [3, 7]
    assert gains == pytest.approx([0.5, 1.0])


def test_ndcg_of_equal_ranks_does_not_depend_on_the_order_of_rows() -> None:
    like, feed = np.array([1, 0, 0], np.float32), np.zeros(3, np.int64)
    one = ndcgs(np.ones(3), like, feed)[1]
    other = ndcgs(np.ones(3), like[::-1], feed)[1]
    assert one == pytest.approx(other)
    assert one == pytest.approx((1 + 1 / np.log2(3) + 0.5) / 3)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=200))
def test_equal_values_share_a_bin_and_bins_are_in_order(values: list[float]) -> None:
    probability = np.array(values)
    bins = equal_bins(probability)
    order = np.argsort(probability, kind="stable")
    assert (np.diff(bins[order]) >= 0).all()
    assert all(len(set(bins[probability == value])) == 1 for value in probability)


def test_chances_that_hold_have_no_calibration_error_and_doubled_ones_have() -> None:
    examples = planted.examples(40_000)
    share = float(examples.like.mean())
    evaluation = Evaluation(examples, draws=20)
    right = evaluation.measures(_constant(examples.like, share))
    wrong = evaluation.measures(_constant(examples.like, 2 * share))
    assert right.ece.value == pytest.approx(0, abs=1e-6)
    assert wrong.ece.value == pytest.approx(share)
    assert right.auc.value == pytest.approx(0.5)
    assert right.user_auc.value == pytest.approx(0.5)


def test_intervals_hold_the_value_and_narrow_with_more_readers() -> None:
    def width(readers: int) -> float:
        examples = planted.examples(1_000 * readers // 5, readers=readers)
        rank = -examples.features.dense[:, 2].astype(np.float64)
        estimate = Evaluation(examples).auc(rank)
        assert estimate.low < estimate.value < estimate.high
        return estimate.high - estimate.low

    assert width(200) < width(20) / 2


def test_a_model_is_not_above_itself() -> None:
    examples = planted.examples(2_000)
    rank = np.random.default_rng(0).random(2_000)
    gain = Evaluation(examples).auc_gain(rank, rank)
    assert (gain.value, gain.low, gain.high) == (0, 0, 0)


def test_measures_repeat() -> None:
    examples = planted.examples(2_000)
    scores = _constant(examples.like, 0.2)
    assert Evaluation(examples).measures(scores) == Evaluation(examples).measures(scores)


def _constant(like: NDArray[np.float32], probability: float) -> Scores:
    return Scores(np.zeros(len(like)), np.full(len(like), probability))
