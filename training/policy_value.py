"""What policies are worth by a log of another, by the Open Bandit Pipeline's estimators.

Runs where `obp` is (stack/open_bandit.py): `python -m training.policy_value ROUNDS.npz OUT.json`.
"""

import argparse
import importlib
import importlib.machinery
import importlib.util
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier

from training.rounds import Rounds

FOLDS = 5
SAMPLES = 1000
_SEED = 6
# Rows that are predicted at once.
_CHUNK = 200_000

Chances = NDArray[np.float64]
Values = dict[str, Any]


def values(rounds: Rounds) -> Values:
    """What the logged and the candidate policy earn in a round, by each estimator.

    The intervals have 95 %, by resampling readers; the reward model stays as it is meanwhile.

    Returns:
        `{ips|snips|dr: {logged|candidate: {value, low, high}}, places, effective_sample_size}`,
        the latter of the candidate.
    """
    expected = expected_rewards(rounds)
    found: Values = {name: {} for name in ("ips", "snips", "dr")}
    for policy in ("logged", "candidate"):
        judged = _judged(rounds, getattr(rounds, policy), expected)
        weights = judged.pop("weights")
        for name, value in judged.items():
            found[name][policy] = value
    size = float(weights.sum() ** 2 / (weights**2).sum())
    return {**found, "places": len(rounds), "effective_sample_size": size}


def expected_rewards(rounds: Rounds) -> Chances:
    """What each option would earn, (n, k), by models that were fitted to other feeds; 0 for none.

    Gradient boosting on what is known of the option, and the position.
    """
    chance = np.random.default_rng(_SEED)
    feeds, feed = np.unique(rounds.feed, return_inverse=True)
    fold = (chance.permutation(len(feeds)) % FOLDS)[feed]
    taken = rounds.pool[np.arange(len(rounds)), rounds.chosen]
    known = np.column_stack([rounds.options[taken], rounds.position])
    expected = np.zeros(rounds.pool.shape)
    for held_out in range(FOLDS):
        others = fold != held_out
        model = _fitted(known[others], rounds.reward[others])
        for some in _chunks(np.flatnonzero(fold == held_out), rounds.pool.shape[1]):
            expected[some] = _predicted(model, rounds, some)
    return expected


def _fitted(known: NDArray[Any], reward: NDArray[np.float32]) -> Any:
    """A model of the chance of a reward; a number where all rewards are the same, or none is."""
    if len(np.unique(reward)) < 2:
        return float(reward[0]) if len(reward) else 0.0
    model = HistGradientBoostingClassifier(
        max_iter=60,
        learning_rate=0.08,
        max_leaf_nodes=15,
        min_samples_leaf=100,
        l2_regularization=1.0,
        early_stopping=False,
        random_state=_SEED,
    )
    return model.fit(known, reward.astype(np.int64))


def _predicted(model: Any, rounds: Rounds, some: NDArray[np.int64]) -> Chances:
    """Of these rounds, (len(some), k)."""
    pool = rounds.pool[some]
    there = pool >= 0
    predicted = np.zeros(pool.shape)
    if isinstance(model, float):
        predicted[there] = model
        return predicted
    position = np.broadcast_to(rounds.position[some][:, None], pool.shape)
    known = np.column_stack([rounds.options[pool[there]], position[there]])
    predicted[there] = model.predict_proba(known)[:, 1]
    return predicted


def _chunks(rows: NDArray[np.int64], width: int) -> Iterator[NDArray[np.int64]]:
    size = max(_CHUNK // width, 1)
    return (rows[start : start + size] for start in range(0, len(rows), size))


def _judged(rounds: Rounds, policy: Chances, expected: Chances) -> dict[str, Any]:
    """Each estimator's value of this policy with its interval, and the weights of the rounds."""
    obp = submodule("obp.ope.estimators")
    ips = obp.InverseProbabilityWeighting()
    snips = obp.SelfNormalizedInverseProbabilityWeighting()
    dr = obp.DoublyRobust()
    given = {
        "action": rounds.chosen,
        "pscore": rounds.logged[np.arange(len(rounds)), rounds.chosen],
        # One choice a round: what obp calls a list has length 1.
        "action_dist": policy[:, :, None],
    }
    reward = rounds.reward.astype(np.float64)
    known = {"reward": reward, "estimated_rewards_by_reg_model": expected[:, :, None]}
    # obp resamples rounds, but those of one reader hang together; so the parts of its sums are
    # taken here reader by reader. Every round's weight is what it would earn with a reward of 1.
    weights = ips._estimate_round_rewards(reward=np.ones(len(rounds)), **given)
    weighted = ips._estimate_round_rewards(reward=reward, **given)
    corrected = dr._estimate_round_rewards(**known, **given)
    ones = np.ones(len(rounds))
    drawn = _resampled(rounds.reader, np.column_stack([ones, weights, weighted, corrected]))
    count, weight, reward_sum, doubly = drawn.T
    return {
        "ips": _estimate(ips.estimate_policy_value(reward=reward, **given), reward_sum / count),
        "snips": _estimate(
            snips.estimate_policy_value(reward=reward, **given), reward_sum / weight
        ),
        "dr": _estimate(dr.estimate_policy_value(**known, **given), doubly / count),
        "weights": weights,
    }


def earned(rewards: NDArray[np.float32], reader: NDArray[np.int64]) -> dict[str, float]:
    """The mean of rewards with its interval: what the policy that they are of is really worth."""
    parts = np.column_stack([np.ones(len(rewards)), rewards])
    count, total = _resampled(reader, parts).T
    return _estimate(rewards.mean(), total / count)


def _resampled(reader: NDArray[np.int64], parts: Chances) -> Chances:
    """Sums of the columns over as many readers as there are, drawn anew: (SAMPLES, columns)."""
    readers, who = np.unique(reader, return_inverse=True)
    by_reader = np.column_stack(
        [np.bincount(who, column, minlength=len(readers)) for column in parts.T]
    )
    chance = np.random.default_rng(_SEED)
    return np.stack(
        [
            np.bincount(chance.integers(len(readers), size=len(readers)), minlength=len(readers))
            @ by_reader
            for _ in range(SAMPLES)
        ]
    )


def _estimate(value: float, drawn: Chances) -> dict[str, float]:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return {"value": float(value), "low": float(low), "high": float(high)}


def submodule(name: str) -> ModuleType:
    """A module of `obp`, without all that its packages import.

    `import obp` loads plotting, statistics and neural networks that neither its estimators nor its
    policies need. So its packages are entered empty, with only their folders.
    """
    parts = name.split(".")
    for depth in range(1, len(parts)):
        package = ".".join(parts[:depth])
        if package not in sys.modules:
            spec = importlib.util.find_spec(package)
            if spec is None or spec.submodule_search_locations is None:
                raise ModuleNotFoundError(f"no module named {package}")
            sys.modules[package] = importlib.util.module_from_spec(
                importlib.machinery.ModuleSpec(package, None, is_package=True)
            )
            sys.modules[package].__path__ = list(spec.submodule_search_locations)
    with _without_torch():
        return importlib.import_module(name)


@contextmanager
def _without_torch() -> Iterator[None]:
    """Meanwhile PyTorch is a module with the one name in it that an annotation of `obp.utils` has.

    Gigabytes for that are not installed; what is annotated is not called here.
    """
    if "torch" in sys.modules:
        yield
        return
    torch = ModuleType("torch")
    vars(torch)["tensor"] = None
    sys.modules["torch"] = torch
    try:
        yield
    finally:
        del sys.modules["torch"]


def main() -> None:
    """Reads rounds, writes their values."""
    parser = argparse.ArgumentParser(prog="python -m training.policy_value")
    parser.add_argument("rounds", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    options.out.write_text(json.dumps(values(Rounds.read(options.rounds))))


if __name__ == "__main__":
    main()
