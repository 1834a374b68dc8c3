"""Whether a version may be promoted: a pure rule over its card."""

from collections.abc import Mapping
from typing import Any

# Names of models in a card's metrics.
CANDIDATE = "deepfm"
HEURISTIC = "heuristic"
PROMOTED = "promoted"

# How much lower than the promoted version's AUC a candidate's may be: half of the 0.01 that either
# side of its interval has on the demo log, so that a retraining does not fail by chance alone.
AUC_TOLERANCE = 0.005
# Of all shown posts, about one in ten is liked: chances that are off by a fifth of that on average
# are no chances to add up by weights.
ECE_LIMIT = 0.02
# Scores are float32: about 1e-7 of them is rounding, and a net adds up some of it. More than this
# is another model.
PARITY_LIMIT = 1e-5
# Estimators without a model's bias, and with one: a version that both see below the log is worse.
ESTIMATORS = {"dr": "DR", "snips": "SNIPS"}


def faults(card: Mapping[str, Any]) -> list[str]:
    """Every reason against the version, a sentence each; empty if it may be promoted.

    What the card lacks is a reason, and so is a figure that is not a number.

    Args:
        card: A version's `card.json`. `metrics` by model, with `auc` and `ece` as `{value, low,
            high}`; `parity`; `off_policy` by estimator, with `logged` and `candidate`.
    """
    return [
        *_ranking_faults(card),
        *_calibration_faults(card),
        *_parity_faults(card),
        *_off_policy_faults(card),
    ]


def _ranking_faults(card: Mapping[str, Any]) -> list[str]:
    low = _number(card, "metrics", CANDIDATE, "auc", "low")
    high = _number(card, "metrics", HEURISTIC, "auc", "high")
    value = _number(card, "metrics", CANDIDATE, "auc", "value")
    found = []
    if low is None or high is None:
        found.append("the card lacks the AUC of the model or of the heuristic, with its interval")
    elif not low > high:
        found.append(
            f"its AUC is not surely above the heuristic's: {low:.4f} at least, against {high:.4f} "
            "at most"
        )
    if PROMOTED in (card.get("metrics") or {}):
        serving = _number(card, "metrics", PROMOTED, "auc", "value")
        if value is None or serving is None:
            found.append("the card lacks its own AUC or the promoted version's")
        elif not value >= serving - AUC_TOLERANCE:
            found.append(
                f"its AUC is below the promoted version's: {value:.4f} against {serving:.4f}, and "
                f"{AUC_TOLERANCE} less is allowed"
            )
    return found


def _calibration_faults(card: Mapping[str, Any]) -> list[str]:
    error = _number(card, "metrics", CANDIDATE, "ece", "value")
    if error is None:
        return ["the card lacks its calibration error"]
    if not error <= ECE_LIMIT:
        return [f"its calibration error is {error:.4f}, above {ECE_LIMIT}"]
    return []


def _parity_faults(card: Mapping[str, Any]) -> list[str]:
    parity = _number(card, "parity")
    if parity is None:
        return ["the card does not say how far the ONNX file is from the trained model"]
    if not parity <= PARITY_LIMIT:
        return [
            f"the ONNX file differs from the trained model by {parity:.1e}, above {PARITY_LIMIT}"
        ]
    return []


def _off_policy_faults(card: Mapping[str, Any]) -> list[str]:
    if not card.get("off_policy"):
        return ["the card has no off-policy estimate"]
    found = []
    for key, name in ESTIMATORS.items():
        high = _number(card, "off_policy", key, "candidate", "high")
        logged = _number(card, "off_policy", key, "logged", "value")
        if high is None or logged is None:
            found.append(f"the card has no off-policy estimate by {name}")
        elif not high >= logged:
            found.append(
                f"by {name} it would have earned {high:.4f} at most, less than the {logged:.4f} "
                "that was logged"
            )
    return found


def _number(card: Mapping[str, Any], *path: str) -> float | None:
    """The number at the path; None when there is none."""
    found: Any = card
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) else None
