"""The ranking model: a DeepFM on the ranker's own features, with heads for like and long dwell."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ranker_svc.features import CATEGORICAL, DENSE, Features
from ranker_svc.scorers.contract import CATEGORICAL_INPUT, DENSE_INPUT, Contract, Field, bucket
from training.deepfm import DeepFM, Shape
from training.examples import Examples
from training.fitting import Batch, Epoch, Recipe, calibrate, fit
from training.split import Split

# Numbers that span magnitudes.
LOGARITHMIC = ("age_hours", "like_count", "viewer_count", "reader_follower_count")
# Ids of which a new one may come at any time.
OPEN = ("reader", "author")
HEADS = ("like", "long_dwell")
# A field of few values gets as many buckets as keep all of them apart.
_FEW = 128


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the heads in the final score; not both 0.

    Args:
        like: FEED_SCORE_LIKE_WEIGHT.
        dwell: FEED_SCORE_DWELL_WEIGHT.
    """

    like: float
    dwell: float


class Model:
    """A net, and the contract by which it reads features.

    Args:
        contract: Columns and buckets.
        weights: Of the final score; ValueError when both are 0.
        net: One that was trained; by default a new one.
    """

    def __init__(self, contract: Contract, weights: Weights, net: DeepFM | None = None) -> None:
        if not weights.like + weights.dwell > 0:
            raise ValueError("the weights of like and dwell in the score are both 0")
        self.contract = contract
        self.weights = weights
        self.net = _net(contract) if net is None else net

    def predict(self, features: Features) -> NDArray[np.float32]:
        """Final score, like and long dwell, all 0 to 1: (n, 3)."""
        scored = Scored(self.net, self.weights)
        device = self.net.bias.device
        dense, categorical = _inputs(self.contract, features)
        with torch.no_grad():
            parts = [
                torch.stack(scored(some.to(device), ids.to(device)), 1).cpu()
                for some, ids in zip(dense.split(65_536), categorical.split(65_536), strict=True)
            ]
        predicted: NDArray[np.float32] = torch.cat(parts).numpy()
        return predicted

    def save(self, file: Path) -> None:
        """Parameters, contract and weights."""
        state = {
            "net": self.net.cpu().state_dict(),
            "metadata": self.contract.metadata(),
            "weights": asdict(self.weights),
        }
        torch.save(state, file)

    @classmethod
    def load(cls, file: Path) -> "Model":
        """What `save` wrote.

        Raises:
            ValueError: The model takes columns that this ranker does not have.
        """
        state: dict[str, Any] = torch.load(file, weights_only=True)
        contract = Contract.read(state["metadata"])
        model = cls(contract, Weights(**state["weights"]))
        model.net.load_state_dict(state["net"])
        model.net.eval()
        return model


class Scored(torch.nn.Module):
    """The net as it serves: final score, like and long dwell, each (n,)."""

    def __init__(self, net: DeepFM, weights: Weights) -> None:
        super().__init__()
        self.net = net.eval()
        total = weights.like + weights.dwell
        self.like, self.dwell = weights.like / total, weights.dwell / total

    def forward(
        self, dense: torch.Tensor, categorical: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Of the contract's inputs."""
        probabilities = self.net.probabilities(dense, categorical)
        like, dwell = probabilities[:, 0], probabilities[:, 1]
        return self.like * like + self.dwell * dwell, like, dwell


def contract_for(examples: Examples) -> Contract:
    """All columns that the ranker has; buckets by how many values there are; no version yet."""
    fields = tuple(
        Field(name, _buckets(name, examples.features.ids[:, column]))
        for column, name in enumerate(CATEGORICAL)
    )
    return Contract("", DENSE, fields)


def train(
    split: Split,
    weights: Weights,
    recipe: Recipe,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
) -> tuple[Model, list[Epoch]]:
    """Fits and calibrates a model; on CUDA where there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(recipe.seed)
    contract = contract_for(split.train)
    model = Model(contract, weights, _net(contract).to(device))
    known = batch(contract, split.train).to(device)
    validation = batch(contract, split.validation).to(device)
    model.net.learn_bins(known.dense)
    epochs = fit(model.net, known, validation, recipe, on_epoch)
    calibrate(model.net, validation)
    return model, epochs


def recipe(seed: int) -> Recipe:
    """How the ranking model is fitted: readers and authors may be unknown."""
    return Recipe(seed=seed, hidden_ids=tuple(CATEGORICAL.index(name) for name in OPEN))


def batch(contract: Contract, examples: Examples) -> Batch:
    """The examples as tensors."""
    labels = np.stack((examples.like, examples.long_dwell), 1)
    return Batch(*_inputs(contract, examples.features), torch.from_numpy(labels))


def _inputs(contract: Contract, features: Features) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = contract.inputs(features)
    return torch.from_numpy(inputs[DENSE_INPUT]), torch.from_numpy(inputs[CATEGORICAL_INPUT])


def _net(contract: Contract) -> DeepFM:
    buckets = tuple(field.buckets for field in contract.categorical)
    shape = Shape(buckets, len(contract.dense), len(HEADS))
    columns = [at for at, name in enumerate(contract.dense) if name in LOGARITHMIC]
    return DeepFM(shape, columns)


def _buckets(name: str, ids: NDArray[np.int64]) -> int:
    values = np.unique(ids[ids != 0])
    most = max(4 * len(values), 2)
    if len(values) > _FEW:
        return most
    # Four times as many do not keep a few dozen apart for sure: chance has it.
    for buckets in range(len(values) + 2, 100 * most):
        if len(np.unique(bucket(values, Field(name, buckets)))) == len(values):
            return buckets
    return most
