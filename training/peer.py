"""`python -m training.peer`: our DeepFM beside RecBole's, on MovieLens-100k, in one run.

It runs in RecBole's environment, which the module enters by itself when started elsewhere, and
reads the data from RecBole's installed package. RecBole loads and splits them; both models get the
same rows, fields, sizes and batches, and are stopped by the validation rows. A rating of 4 or more
is a like, a lower one is not; nothing else is sampled.
"""

import argparse
import asyncio
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import chdir
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

FIELDS = ("user_id", "item_id", "age", "gender", "occupation", "release_year")
WIDTH, HIDDEN, ROWS, RATE = 16, (128, 64), 2048, 1e-3
TOLERANCE = 0.002
# RecBole's by default.
DROPOUT, PATIENCE = 0.2, 10
# Users and items.
_IDS = (0, 1)


@dataclass(frozen=True, slots=True)
class Result:
    """Of one model and seed: AUC on the test rows, and seconds of an epoch."""

    auc: float
    epoch_s: float
    epochs: int


def main() -> None:
    """Prints both models' figures; exits with 1 when ours is more than `TOLERANCE` below."""
    parser = argparse.ArgumentParser(prog="python -m training.peer")
    parser.add_argument("--seeds", type=int, default=5, help="how many (5)")
    options = parser.parse_args()
    if find_spec("recbole") is None:
        sys.exit(_in_recbole(options.seeds))
    sys.exit(compare(options.seeds))


def _in_recbole(seeds: int) -> int:
    from mesh.settings import Settings
    from stack import environments
    from stack.place import Place

    cache = Place.of(Settings()).cache
    running = environments.run_module(
        cache, environments.RECBOLE, "training.peer", "--seeds", str(seeds)
    )
    return asyncio.run(running)


def compare(seeds: int) -> int:
    """Each seed splits the ratings anew, for both; returns the exit code."""
    import torch

    # RecBole would read the command line, and its trainer makes something deprecated every epoch.
    del sys.argv[1:]
    warnings.filterwarnings("ignore", category=FutureWarning)
    # As for our own training: see training/__main__.py.
    torch.set_num_threads(1)
    print("seed   AUC ours   RecBole's   difference   epoch ours   RecBole's   epochs")
    differences = []
    for seed in range(1, seeds + 1):
        ours, theirs = _both(seed)
        differences.append(ours.auc - theirs.auc)
        print(
            f"{seed:4}   {ours.auc:8.4f}   {theirs.auc:9.4f}   {differences[-1]:+10.4f}   "
            f"{ours.epoch_s:8.2f} s   {theirs.epoch_s:7.2f} s   "
            f"{ours.epochs} and {theirs.epochs}",
            flush=True,
        )
    mean = sum(differences) / len(differences)
    print(f"mean difference {mean:+.4f}, must be {-TOLERANCE} or more")
    return 0 if mean >= -TOLERANCE else 1


def _both(seed: int) -> tuple[Result, Result]:
    """Ours and RecBole's, on the split of this seed."""
    import recbole
    from recbole.config import Config
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import init_seed

    # RecBole writes what TensorBoard shows into the current folder.
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        config = Config(
            model="DeepFM",
            dataset="ml-100k",
            config_dict={
                "data_path": str(Path(recbole.__file__).parent / "dataset_example"),
                "checkpoint_dir": folder,
                "load_col": {
                    "inter": ["user_id", "item_id", "rating"],
                    "user": ["user_id", "age", "gender", "occupation"],
                    "item": ["item_id", "release_year"],
                },
                "threshold": {"rating": 4},
                "train_neg_sample_args": None,
                "eval_args": {
                    "split": {"RS": [0.8, 0.1, 0.1]},
                    "order": "RO",
                    "group_by": None,
                    "mode": "labeled",
                },
                "metrics": ["AUC", "LogLoss"],
                "valid_metric": "AUC",
                "stopping_step": PATIENCE,
                "embedding_size": WIDTH,
                "mlp_hidden_size": list(HIDDEN),
                "dropout_prob": DROPOUT,
                "train_batch_size": ROWS,
                "learning_rate": RATE,
                "seed": seed,
                "use_gpu": False,
                "show_progress": False,
            },
        )
        logging.disable(logging.INFO)
        init_seed(seed, reproducibility=True)
        dataset = create_dataset(config)
        loaders = data_preparation(config, dataset)
        theirs = _theirs(config, loaders)
        sizes = tuple(int(dataset.num(name)) for name in FIELDS)
        return _ours(sizes, loaders, seed), theirs


def _theirs(config: Any, loaders: Any) -> Result:
    import torch
    from recbole.model.context_aware_recommender import DeepFM
    from recbole.trainer import Trainer

    train, validation, test = loaders
    model = DeepFM(config, train.dataset).to(config["device"])
    trainer = Trainer(config, model)
    seconds: list[float] = []
    trainer._train_epoch = _timed(trainer._train_epoch, seconds)
    trainer.fit(train, validation, saved=True, show_progress=False)
    # Its own loading does not say that more than tensors come, which torch has since refused.
    checkpoint = torch.load(trainer.saved_model_file, weights_only=False)
    model.load_state_dict(checkpoint["state_dict"])
    model.eval()
    with torch.no_grad():
        rows = _rows(test)
        scores = model.predict(rows)
    auc = _auc(scores, rows["label"])
    return Result(auc, _median(seconds), len(seconds))


def _ours(sizes: tuple[int, ...], loaders: Any, seed: int) -> Result:
    import torch

    from training.deepfm import DeepFM, Shape
    from training.fitting import Batch, Recipe, fit, logits

    def batch(loader: Any) -> Batch:
        found = _rows(loader)
        ids = torch.stack([found[name].long() for name in FIELDS], 1)
        return Batch(torch.zeros(len(ids), 0), ids, found["label"].float()[:, None])

    train, validation, test = map(batch, loaders)
    torch.manual_seed(seed)
    net = DeepFM(Shape(sizes, dense=0, heads=1, width=WIDTH, hidden=HIDDEN), dropout=DROPOUT)
    # RecBole hides no ids, and takes the epoch of the best AUC.
    recipe = Recipe(
        seed=seed, rows=ROWS, rate=RATE, epochs=100, patience=PATIENCE, hidden_ids=_IDS, drop=0
    )
    epochs = fit(net, train, validation, recipe, measure=_without_auc)
    auc = _auc(logits(net, test)[:, 0], test.labels[:, 0])
    return Result(auc, _median([epoch.seconds for epoch in epochs]), len(epochs))


def _without_auc(net: Any, validation: Any) -> float:
    from training.fitting import logits

    return -_auc(logits(net, validation)[:, 0], validation.labels[:, 0])


def _rows(loader: Any) -> Any:
    """All ratings of a part, with what is known of users and items."""
    return loader.dataset.join(loader.dataset.inter_feat)


def _timed(work: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.perf_counter()
        result = work(*arguments, **named)
        seconds.append(time.perf_counter() - started)
        return result

    return timed


def _auc(scores: Any, labels: Any) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels.numpy(), scores.numpy()))


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


if __name__ == "__main__":
    main()
