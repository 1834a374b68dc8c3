"""The gate before a promotion, and what a promotion makes of the state."""

from copy import deepcopy
from typing import Any

import pytest

from mesh.errors import FailedPrecondition
from stores.registry.gate import AUC_TOLERANCE, ECE_LIMIT, PARITY_LIMIT, faults
from stores.registry.moves import kept, promoted, rolled_back, with_shadow, without_shadow
from stores.registry.port import State
from tests.fixtures.cards import around, good_card

MISSING: dict[str, Any] = {}


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good card with one entry replaced, or removed if the value is MISSING."""
    card = deepcopy(good_card())
    *parents, last = path.split(".")
    inner = card
    for name in parents:
        inner = inner[name]
    inner[last] = value
    if value is MISSING:
        del inner[last]
    return card


def test_a_good_version_may_be_promoted() -> None:
    assert faults(good_card()) == []


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("metrics.heuristic.auc", around(0.80, 0.02), "not surely above the heuristic's: 0.7900"),
        ("metrics.deepfm.auc", around(0.80, 0.2), "not surely above the heuristic's"),
        ("metrics.deepfm.auc", MISSING, "lacks the AUC"),
        ("metrics.heuristic", MISSING, "lacks the AUC"),
        ("metrics.promoted", {"auc": around(0.81, 0.01)}, "below the promoted version's: 0.8000"),
        ("metrics.promoted", {"auc": MISSING}, "the promoted version's"),
        ("metrics.deepfm.ece", around(ECE_LIMIT * 1.1, 0.01), "calibration error is 0.0220"),
        ("metrics.deepfm.ece", around(float("nan"), 0.01), "calibration error is nan"),
        ("metrics.deepfm.ece", MISSING, "lacks its calibration error"),
        ("parity", PARITY_LIMIT * 2, "differs from the trained model by 2.0e-05"),
        ("parity", None, "does not say how far"),
        ("parity", MISSING, "does not say how far"),
        ("off_policy", None, "no off-policy estimate"),
        ("off_policy", MISSING, "no off-policy estimate"),
        ("off_policy.dr", MISSING, "no off-policy estimate by DR"),
        ("off_policy.dr.candidate", around(0.05, 0.01), "by DR it would have earned 0.0600 at"),
        ("off_policy.snips.candidate", around(0.05, 0.01), "by SNIPS it would have earned 0.0600"),
    ],
)
def test_what_is_wrong_is_said(path: str, value: Any, reason: str) -> None:
    found = faults(changed(path, value))
    assert len(found) == 1
    assert reason in found[0]


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("metrics.promoted", {"auc": around(0.80 + AUC_TOLERANCE / 2, 0.01)}),
        ("metrics.promoted", {"auc": around(0.75, 0.01)}),
        ("parity", PARITY_LIMIT),
        ("off_policy.dr.candidate", around(0.095, 0.01)),
        ("off_policy.ips", MISSING),
    ],
)
def test_what_is_close_enough_is_no_reason(path: str, value: Any) -> None:
    assert faults(changed(path, value)) == []


def test_all_reasons_are_said_at_once() -> None:
    card = changed("metrics.deepfm.auc", around(0.6, 0.1))
    card["metrics"]["promoted"] = {"auc": around(0.8, 0.01)}
    card |= {"parity": 1.0, "off_policy": None}
    assert len(faults(card)) == 4
    assert len(faults({})) == 4


def test_a_promotion_remembers_what_served_before() -> None:
    first = promoted(State(), 4)
    assert first == State(4)
    third = promoted(promoted(first, 5), 6)
    assert third == State(6, (5, 4))
    assert promoted(third, 4) == State(4, (6, 5))
    with pytest.raises(FailedPrecondition, match="already"):
        promoted(third, 6)


def test_a_rollback_goes_back_step_by_step() -> None:
    state = rolled_back(State(6, (5, 4)))
    assert state == State(5, (4,))
    assert rolled_back(state) == State(4)
    with pytest.raises(FailedPrecondition, match="no version was promoted before"):
        rolled_back(State(4))


def test_a_promoted_shadow_is_a_shadow_no_more() -> None:
    state = with_shadow(State(1), 2, 0.1)
    assert state == State(1, (), 2, 0.1)
    assert promoted(state, 2) == State(2, (1,))
    assert promoted(state, 3) == State(3, (1,), 2, 0.1)
    assert without_shadow(state) == State(1)
    with pytest.raises(FailedPrecondition, match="its own shadow"):
        with_shadow(State(2), 2, 0.1)


def test_the_latest_versions_are_kept() -> None:
    assert kept(State()) == []
    assert kept(State(1)) == [1]
    assert kept(State(9, (8, 3, 2, 1))) == [9, 8, 3]
