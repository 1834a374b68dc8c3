"""Fits a DeepFM: batches from memory, early stopping, calibration. Torch alone is needed."""

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from training.deepfm import DeepFM


@dataclass(frozen=True, slots=True)
class Batch:
    """n rows.

    Args:
        dense: Numbers, float32 (n, dense).
        categorical: Buckets, int64 (n, fields).
        labels: 0, 1, or NaN where it is not known; float32 (n, heads).
    """

    dense: Tensor
    categorical: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, rows: Tensor | slice) -> "Batch":
        return Batch(self.dense[rows], self.categorical[rows], self.labels[rows])

    def to(self, device: str) -> "Batch":
        return Batch(self.dense.to(device), self.categorical.to(device), self.labels.to(device))


@dataclass(frozen=True, slots=True)
class Recipe:
    """How to fit.

    Args:
        seed: Of everything random.
        rows: In a batch.
        rate: Adam's.
        epochs: At most.
        patience: Ends after as many epochs without a better validation loss.
        hidden_ids: Fields whose id is dropped at random, so that 0 comes to stand for an unknown.
        drop: How often.
        memory: The net that is kept is a running mean over the steps, which forgets 1 - memory of
            itself at each: single steps are noisy.
        penalty: Weight of the squared length of those fields' embeddings.
    """

    seed: int = 1
    rows: int = 4096
    rate: float = 2e-3
    epochs: int = 30
    patience: int = 2
    hidden_ids: tuple[int, ...] = ()
    drop: float = 0.1
    memory: float = 0.995
    penalty: float = 1e-2


@dataclass(frozen=True, slots=True)
class Epoch:
    """One pass: mean losses, and how long the training's part took."""

    train: float
    validation: float
    seconds: float


def fit(
    net: DeepFM,
    train: Batch,
    validation: Batch,
    recipe: Recipe,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    measure: Callable[[DeepFM, Batch], float] | None = None,
) -> list[Epoch]:
    """Leaves the net as it was after its best epoch; returns all epochs.

    The same seed on the same kind of device gives the same net.

    Args:
        net: A new one.
        train: What it learns from.
        validation: What tells which epoch is best, and when to end.
        recipe: How.
        on_epoch: Told of each.
        measure: Of the validation rows, less is better; the loss unless told.
    """
    measure = measure or evaluate
    chance = torch.Generator().manual_seed(recipe.seed)
    # Dropout draws from the global generator.
    torch.manual_seed(recipe.seed)
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.rate)
    mean = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(recipe.memory))
    best, best_state, epochs = math.inf, deepcopy(net.state_dict()), list[Epoch]()
    best_at = 0
    for number in range(recipe.epochs):
        started = time.perf_counter()
        loss = _pass(net, mean, train, recipe, optimizer, chance)
        seconds = time.perf_counter() - started
        epoch = Epoch(loss, measure(mean.module, validation), seconds)
        epochs.append(epoch)
        on_epoch(epoch)
        if epoch.validation < best:
            best, best_at = epoch.validation, number
            best_state = deepcopy(mean.module.state_dict())
        elif number - best_at >= recipe.patience:
            break
    net.load_state_dict(best_state)
    net.eval()
    return epochs


def loss_of(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over the heads of the mean log loss of what is known, a scalar."""
    known = ~torch.isnan(labels)
    losses = nn.functional.binary_cross_entropy_with_logits(
        logits, torch.nan_to_num(labels), reduction="none"
    )
    per_head = (losses * known).sum(0) / known.sum(0).clamp(min=1)
    total: Tensor = per_head.sum()
    return total


def evaluate(net: DeepFM, batch: Batch) -> float:
    """The loss without dropout."""
    return float(loss_of(logits(net, batch), batch.labels))


def logits(net: DeepFM, batch: Batch) -> Tensor:
    """All rows', (n, heads), without gradients."""
    net.eval()
    with torch.no_grad():
        parts = [
            net(part.dense, part.categorical)
            for part in (batch.at(slice(at, at + 65_536)) for at in range(0, len(batch), 65_536))
        ]
    return torch.cat(parts)


def calibrate(net: DeepFM, validation: Batch) -> None:
    """Sets slope and offset of each head so that the validation's log loss is least."""
    found = logits(net, validation).double().cpu()
    labels = validation.labels.double().cpu()
    for head in range(found.shape[1]):
        known = ~torch.isnan(labels[:, head])
        slope, offset = _platt(found[known, head], labels[known, head])
        net.slope[head], net.offset[head] = slope, offset


def _platt(logit: Tensor, label: Tensor) -> tuple[float, float]:
    # With one kind of label alone the best offset would be infinite.
    if len(label) == 0 or bool((label == label[0]).all()):
        return 1.0, 0.0
    line = torch.tensor([1.0, 0.0], dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([line], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        loss: Tensor = nn.functional.binary_cross_entropy_with_logits(
            line[0] * logit + line[1], label
        )
        loss.backward()
        return loss

    solver.step(closure)
    slope, offset = line.tolist()
    return slope, offset


def _pass(
    net: DeepFM,
    mean: AveragedModel,
    train: Batch,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    chance: torch.Generator,
) -> float:
    net.train()
    order = torch.randperm(len(train), generator=chance)
    total = 0.0
    for rows in order.split(recipe.rows):
        batch = train.at(rows.to(train.labels.device))
        categorical = _hide(batch.categorical, recipe.hidden_ids, recipe.drop, chance)
        loss = loss_of(net(batch.dense, categorical), batch.labels)
        total += float(loss.detach()) * len(batch)
        if recipe.hidden_ids and recipe.penalty:
            loss = loss + recipe.penalty * net.penalty(categorical, recipe.hidden_ids)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        mean.update_parameters(net)
    return total / len(train)


def _hide(
    categorical: Tensor, fields: Sequence[int], drop: float, chance: torch.Generator
) -> Tensor:
    if not fields or not drop:
        return categorical
    kept = torch.ones(categorical.shape, dtype=torch.int64)
    drawn = torch.rand((len(categorical), len(fields)), generator=chance) >= drop
    kept[:, list(fields)] = drawn.long()
    return categorical * kept.to(categorical.device)
