"""The estimators on a real log: what Thompson sampling earned, told from random choices.

Part of ZOZOTOWN's Open Bandit Dataset lies in the package `obp`: for three campaigns, 10,000 rounds
of a policy that chose at random and 10,000 of Bernoulli Thompson sampling ("bts"), with their
chances. So bts can be judged by the log of chance, and be held against what it really earned. Runs
where `obp` is: `make off-policy-check`.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.policy_value import earned, submodule, values
from training.rounds import Rounds

_CAMPAIGNS = ("all", "men", "women")
_ESTIMATORS = ("ips", "snips", "dr")
_PLACES = 3
_DRAWS = 100_000
_SEED = 6


def main() -> None:
    """Prints a line for each estimate; exits with 1 where one misses what bts earned."""
    print("What bts earns per round (clicks), by the log of random choices; 95 % intervals")
    print(f"{'campaign':9} {'by':8} {'value':>8} {'interval':>19} {'error':>7} {'sample':>7}")
    missed = sum(_campaign(name) for name in _CAMPAIGNS)
    if missed:
        sys.exit(f"{missed} estimates miss what bts earned")


def _campaign(campaign: str) -> int:
    """Prints a campaign's lines; how many estimates' intervals do not meet the truth's."""
    told = values(rounds(campaign))
    truth = on_policy(campaign)
    _line(campaign, "truth", truth, truth["value"], None)
    missed = 0
    for name in _ESTIMATORS:
        estimate = told[name]["candidate"]
        _line(campaign, name, estimate, truth["value"], told["effective_sample_size"])
        missed += estimate["low"] > truth["high"] or estimate["high"] < truth["low"]
    return missed


def _line(
    campaign: str, by: str, estimate: dict[str, float], truth: float, size: float | None
) -> None:
    interval = f"{estimate['low']:.5f} - {estimate['high']:.5f}"
    error = "" if size is None else f"{estimate['value'] / truth - 1:+.1%}"
    told = "" if size is None else f"{size:.0f}"
    print(f"{campaign:9} {by:8} {estimate['value']:8.5f} {interval:>19} {error:>7} {told:>7}")


def on_policy(campaign: str) -> dict[str, float]:
    """What bts earned in its own log."""
    log = _log("bts", campaign)
    return earned(log["click"].to_numpy(np.float32), np.arange(len(log)))


def rounds(campaign: str) -> Rounds:
    """The log of random choices, with bts as the candidate.

    Of each option are known the reader's features, the item's, and how much the one likes the
    other.
    """
    log, items = _log("random", campaign), _items(campaign)
    n, k = len(log), len(items)
    readers = np.column_stack(
        [pd.factorize(log[f"user_feature_{i}"], sort=True)[0] for i in range(4)]
    )
    affinity = log[[f"user-item_affinity_{i}" for i in range(k)]].to_numpy()
    options = [np.repeat(readers, k, axis=0), np.tile(items, (n, 1)), affinity.ravel()]
    return Rounds(
        options=np.column_stack(options).astype(np.float32),
        pool=np.arange(n * k).reshape(n, k),
        position=log["position"].to_numpy(np.int32),
        chosen=log["item_id"].to_numpy(np.int64),
        reward=log["click"].to_numpy(np.float32),
        # Nobody says whose rounds they are.
        reader=np.arange(n),
        feed=np.arange(n),
        logged=np.full((n, k), 1 / k),
        candidate=_thompson(campaign, k)[log["position"].to_numpy() - 1],
    )


def _thompson(campaign: str, items: int) -> NDArray[np.float64]:
    """How likely bts has each item at each of the three places, (places, items)."""
    policy: Any = submodule("obp.policy.contextfree").BernoulliTS(
        n_actions=items,
        len_list=_PLACES,
        is_zozotown_prior=True,
        campaign=campaign,
        random_state=_SEED,
    )
    chances: NDArray[np.float64] = policy.compute_batch_action_dist(n_rounds=1, n_sim=_DRAWS)[0]
    return chances.T


def _log(policy: str, campaign: str) -> pd.DataFrame:
    return pd.read_csv(_folder(policy, campaign) / f"{campaign}.csv", index_col=0)


def _items(campaign: str) -> NDArray[np.float32]:
    """What is known of each item, float32 (items, 4); hashed values are numbered."""
    table = pd.read_csv(_folder("random", campaign) / "item_context.csv", index_col=0)
    table = table.sort_values("item_id")
    hashed = [pd.factorize(table[f"item_feature_{i}"], sort=True)[0] for i in range(1, 4)]
    return np.column_stack([table["item_feature_0"], *hashed]).astype(np.float32)


def _folder(policy: str, campaign: str) -> Path:
    return Path(submodule("obp.version").__file__ or "").parent / "dataset/obd" / policy / campaign


if __name__ == "__main__":
    main()
