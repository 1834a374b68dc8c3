"""`python -m training --examples FILE`: trains, evaluates and exports a new version of the model.

It runs in the training environment; `feedmesh model train` brings it there.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from mesh.errors import FeedError
from mesh.settings import Settings
from stores.connect import Connections
from stores.registry.folder import CARD, MODEL, FolderRegistry
from training import baselines, off_policy, report
from training.evaluation import Evaluation, Scores, model_scores
from training.examples import Examples
from training.export import export
from training.fitting import Epoch
from training.inference import run
from training.model import Model, Weights, recipe, train
from training.split import Split, by_days, day
from training.tables import table

_HELD_OUT = 20_000
_console = Console(highlight=False)


def main() -> None:
    """Exits with a line that says why when there is no version in the end."""
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    parser.add_argument("--examples", type=Path, required=True, help="the .npz of training.dataset")
    parser.add_argument(
        "--log", type=Path, help="the log that the examples come from, for off-policy estimates"
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    # The net is small: two threads that wait for one another on busy cores took ten times as long.
    torch.set_num_threads(1)
    settings = Settings()
    weights = Weights(settings.score_like_weight, settings.score_dwell_weight)
    try:
        split = by_days(Examples.read(options.examples))
        registry = Connections(settings).registry()
        number = add_version(registry, split, weights, options.log, options.seed)
    except (FeedError, ValueError, OSError) as error:
        sys.exit(f"no new version: {error}")
    _console.print(f"version {number}: {registry.folder(number) / report.FILE}")


def add_version(
    registry: FolderRegistry, split: Split, weights: Weights, log: Path | None, seed: int
) -> int:
    """Trains on the split and adds a version to the registry; returns its number.

    Without the log there are no off-policy estimates, and so it is not to be promoted.

    Raises:
        ValueError: The weights are both 0, or the exported model differs from the trained one.
    """
    model, epochs = _train(split, weights, seed)
    device = str(model.net.bias.device)
    scores = _scores(registry, split, model)
    _say("evaluating")
    metrics, gains = _measured(split.test, scores)
    # Last, because nobody else adds or promotes a version meanwhile.
    with registry.adding() as (number, folder):
        model.contract = replace(model.contract, version=str(number))
        _say("exporting, and writing the report")
        parity = export(model, split.test.features, folder / MODEL)
        model.save(folder / "model.pt")
        split.test.at(_sample(len(split.test))).write(folder / "test.npz")
        card = {
            "version": str(number),
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": _described(split, log),
            "contract": {
                "dense": model.contract.dense,
                "categorical": [asdict(field) for field in model.contract.categorical],
            },
            "metrics": metrics,
            "auc_gain": gains,
            "parity": parity,
            "off_policy": _off_policy(log, folder / MODEL, split.test),
            "weights": asdict(weights),
            "training": {
                "epochs": len(epochs),
                "seconds_per_epoch": float(np.mean([epoch.seconds for epoch in epochs])),
                "seed": seed,
                "device": device,
            },
        }
        (folder / CARD).write_text(json.dumps(card, indent=1))
        page = report.page(card, epochs, model, split, scores)
        (folder / report.FILE).write_text(page)
    _console.print(table(metrics, gains))
    return number


def _train(split: Split, weights: Weights, seed: int) -> tuple[Model, list[Epoch]]:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    fitted = recipe(seed)
    with Progress(*columns, console=_console) as progress:
        task = progress.add_task(f"training on {len(split.train):,}", total=fitted.epochs)

        def on_epoch(epoch: Epoch) -> None:
            progress.advance(task)
            progress.console.print(
                f"  loss {epoch.train:.4f}, on validation {epoch.validation:.4f}, "
                f"{epoch.seconds:.1f} s"
            )

        model, epochs = train(split, weights, fitted, on_epoch)
        # It ended early: there is nothing left to do.
        progress.update(task, total=len(epochs))
    return model, epochs


def _scores(registry: FolderRegistry, split: Split, model: Model) -> dict[str, Scores]:
    """Of all models, on the test days."""
    features = split.test.features
    found = {"deepfm": model_scores(model.predict(features))}
    _say("fitting the baselines")
    for name, baseline in baselines.fitted(split, model.contract).items():
        found[name] = baseline.scores(features)
    promoted = registry.state().promoted
    if promoted is not None:
        try:
            found["promoted"] = model_scores(run(registry.folder(promoted) / MODEL, features))
        except ValueError as error:
            _say(f"version {promoted}, which is promoted, is not compared: it {error}")
    return found


def _measured(
    test: Examples, scores: Mapping[str, Scores]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The card's `metrics`, and by how much DeepFM's AUC is above the others'."""
    evaluation = Evaluation(test)
    metrics = {name: asdict(evaluation.measures(each)) for name, each in scores.items()}
    gains = {
        name: asdict(evaluation.auc_gain(scores["deepfm"].rank, each.rank))
        for name, each in scores.items()
        if name != "deepfm"
    }
    return metrics, gains


def _off_policy(log: Path | None, model: Path, test: Examples) -> dict[str, Any] | None:
    """Of the test days, which the model has not learned from."""
    if log is None:
        return None
    _say("estimating what it would have earned in the log's feeds")
    first, last = (date.fromisoformat(day(at)) for at in test.shown_at_ms[[0, -1]])
    estimates = off_policy.estimate(log, model, first, last)
    _console.print(off_policy.table(estimates))
    return estimates


def _described(split: Split, log: Path | None) -> dict[str, Any]:
    parts = {"train": split.train, "validation": split.validation, "test": split.test}
    return {
        "log": str(log or ""),
        "rows": sum(map(len, parts.values())),
        "first_day": day(split.train.shown_at_ms.min()),
        "last_day": day(split.test.shown_at_ms.max()),
        "split": {
            name: {
                "rows": len(part),
                "first_day": day(part.shown_at_ms.min()),
                "last_day": day(part.shown_at_ms.max()),
                "likes": float(part.like.mean()),
            }
            for name, part in parts.items()
        },
    }


def _sample(rows: int) -> NDArray[np.int64]:
    """Up to `_HELD_OUT` rows, in their order."""
    chosen = np.random.default_rng(0).permutation(rows)[:_HELD_OUT]
    return np.sort(chosen)


def _say(step: str) -> None:
    _console.print(step, style="dim")


if __name__ == "__main__":
    main()
