"""What a model would have earned in the places of the log where chance chose.

`python -m training.off_policy --log ROOT --model FILE.onnx` prints a table; docs/off-policy.md says
what it means.
"""

import argparse
import asyncio
import json
import sys
import tempfile
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mesh import logs
from mesh.errors import FailedPrecondition, FeedError
from mesh.settings import Settings
from ranker_svc.features import Features
from ranker_svc.scorers.onnx import OnnxScorer
from stack import open_bandit
from stack.place import Place
from stores.log.parquet import ParquetLog
from training.pools import Choices
from training.rounds import Rounds

# Rows that a model is given at once.
_CHUNK = 100_000


def estimate(
    log_root: Path,
    model_file: Path,
    first: date | None = None,
    last: date | None = None,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Likes for each seen place that chance had a say in: as logged, and by the model's scores.

    Blocks, for minutes at most.

    Args:
        log_root: Of a `ParquetLog`.
        model_file: In ONNX, with its contract.
        first: The earliest day of feeds; None for the earliest there is. A model is judged by days
            that it has not learned from.
        last: The latest, itself included; None for the latest there is.
        cache: Where the estimators are installed; None for the settings' one.

    Returns:
        `{ips|snips|dr: {logged|candidate: {value, low, high}}, places, effective_sample_size}`.

    Raises:
        ValueError: No place of these days was drawn and seen, or the model does not load.
        FailedPrecondition: The estimators cannot be had.
    """
    scorer = OnnxScorer(model_file)
    choices = Choices.read(ParquetLog(log_root), first, last)
    rounds = Rounds(
        options=choices.features.dense,
        pool=choices.pool,
        position=choices.position,
        chosen=choices.chosen,
        reward=choices.reward,
        reader=choices.reader,
        feed=choices.feed,
        logged=choices.logged(),
        candidate=choices.by_score(_scores(scorer, choices.features)),
    )
    return asyncio.run(_values(rounds, cache or Place.of(Settings()).cache))


def _scores(scorer: OnnxScorer, features: Features) -> NDArray[np.float32]:
    async def all_of_them() -> NDArray[np.float32]:
        starts = range(0, len(features), _CHUNK)
        parts = [
            Features(features.dense[n : n + _CHUNK], features.ids[n : n + _CHUNK]) for n in starts
        ]
        return np.concatenate([await scorer.score(part) for part in parts])

    return asyncio.run(all_of_them())


async def _values(rounds: Rounds, cache: Path) -> dict[str, Any]:
    """`training.policy_value.values`, in its environment."""
    with tempfile.TemporaryDirectory() as folder:
        given, out = Path(folder, "rounds.npz"), Path(folder, "values.json")
        await asyncio.to_thread(rounds.write, given)
        code = await open_bandit.run_module(cache, "training.policy_value", str(given), str(out))
        if code:
            raise FailedPrecondition(f"training.policy_value ended with {code}")
        found: dict[str, Any] = json.loads(await asyncio.to_thread(out.read_text))
        return found


def table(estimates: dict[str, Any]) -> str:
    """The estimates as lines to look at."""
    lines = [f"{'by':6} {'logged':>8} {'95 %':>17}   {'candidate':>9} {'95 %':>17} {'change':>7}"]
    for name in ("ips", "snips", "dr"):
        logged, candidate = estimates[name]["logged"], estimates[name]["candidate"]
        change = f"{candidate['value'] / logged['value'] - 1:+.1%}" if logged["value"] else ""
        lines.append(
            f"{name:6} {logged['value']:8.4f} {_interval(logged):>17}   "
            f"{candidate['value']:9.4f} {_interval(candidate):>17} {change:>7}"
        )
    size = estimates["effective_sample_size"]
    return "\n".join(
        [*lines, f"{estimates['places']} places; worth {size:.0f} of the candidate's own"]
    )


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['low']:.4f} - {estimate['high']:.4f}"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="python -m training.off_policy")
    parser.add_argument("--log", type=Path, required=True, help="folder of the log of feeds")
    parser.add_argument("--model", type=Path, required=True, help="ONNX file")
    parser.add_argument("--first", type=date.fromisoformat, help="earliest day of feeds")
    parser.add_argument("--last", type=date.fromisoformat, help="latest day of feeds")
    options = parser.parse_args()
    logs.setup(Settings())
    try:
        print(table(estimate(options.log, options.model, options.first, options.last)))
    except (ValueError, FeedError) as error:
        sys.exit(f"no estimate: {error}")


if __name__ == "__main__":
    main()
