"""DeepFM (Guo et al. 2017) in PyTorch: a factorisation machine and a deep net on shared embeddings.

Nothing of the mesh is imported here, so that the peer check can run it in another environment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Shape:
    """What a net's parameters depend on; with it and the state, the net can be built again.

    Args:
        buckets: Values of each field of ids, value 0 meaning none.
        dense: How many numbers a row has.
        heads: How many things are predicted.
        width: Length of an embedding.
        hidden: Units of the deep part's layers.
    """

    buckets: tuple[int, ...]
    dense: int
    heads: int
    width: int = 16
    hidden: tuple[int, ...] = (128, 64)


class DeepFM(nn.Module):
    """Each field of ids, and each number, has an embedding that both parts use.

    A number's embedding is multiplied by the number; numbers are normalised inside.

    Args:
        shape: Sizes.
        logarithmic: Columns of the numbers that span magnitudes, so log(1 + x) is taken of them.
        dropout: Of the deep part, in training.
    """

    def __init__(self, shape: Shape, logarithmic: Sequence[int] = (), dropout: float = 0.1) -> None:
        super().__init__()
        rows = sum(shape.buckets)
        fields = len(shape.buckets) + shape.dense
        self.embedding = nn.Embedding(rows, shape.width)
        self.linear = nn.Embedding(rows, shape.heads)
        self.dense_embedding = nn.Parameter(torch.empty(shape.dense, shape.width))
        self.dense_linear = nn.Linear(shape.dense, shape.heads)
        # One factorisation machine for all heads; each head weighs its dimensions.
        self.pairs = nn.Parameter(torch.ones(shape.width, shape.heads))
        layers: list[nn.Module] = []
        units = fields * shape.width
        for following in shape.hidden:
            layers += [nn.Linear(units, following), nn.ReLU(), nn.Dropout(dropout)]
            units = following
        self.deep = nn.Sequential(*layers, nn.Linear(units, shape.heads))
        starts = torch.tensor((0, *shape.buckets[:-1])).cumsum(0)
        self.register_buffer("starts", starts)
        is_logarithmic = torch.zeros(shape.dense, dtype=torch.bool)
        is_logarithmic[list(logarithmic)] = True
        self.register_buffer("is_logarithmic", is_logarithmic)
        self.register_buffer("mean", torch.zeros(shape.dense))
        self.register_buffer("deviation", torch.ones(shape.dense))
        # Platt's: the calibrated logit is slope * logit + offset.
        self.register_buffer("slope", torch.ones(shape.heads))
        self.register_buffer("offset", torch.zeros(shape.heads))
        nn.init.zeros_(self.linear.weight)
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.normal_(self.dense_embedding, std=0.05)

    def learn_scale(self, dense: Tensor) -> None:
        """Takes mean and deviation of the training set, (n, dense)."""
        values = self._spread(dense)
        self.mean.copy_(values.mean(0))
        deviation = values.std(0)
        self.deviation.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, dense: Tensor, categorical: Tensor) -> Tensor:
        """Logits before calibration, (n, heads), of numbers (n, dense) and ids (n, fields)."""
        rows = categorical + self.starts
        # What the training set did not have may be far away: the net has learnt nothing of there.
        values = ((self._spread(dense) - self.mean) / self.deviation).clamp(-5, 5)
        of_numbers = values.unsqueeze(2) * self.dense_embedding
        embeddings = torch.cat((self.embedding(rows), of_numbers), 1)
        # The sum over all pairs of fields of products, by the square of the sum.
        products = (embeddings.sum(1).square() - embeddings.square().sum(1)) / 2
        logits: Tensor = (
            self.linear(rows).sum(1)
            + self.dense_linear(values)
            + products @ self.pairs
            + self.deep(embeddings.flatten(1))
        )
        return logits

    def probabilities(self, dense: Tensor, categorical: Tensor) -> Tensor:
        """Calibrated, (n, heads)."""
        return torch.sigmoid(self(dense, categorical) * self.slope + self.offset)

    def penalty(self, categorical: Tensor, fields: Sequence[int]) -> Tensor:
        """Mean squared length of these fields' embeddings over the rows, a scalar.

        A row's id counts as often as it comes, as if each had a normal prior.
        """
        rows = (categorical + self.starts)[:, list(fields)]
        return (
            self.embedding(rows).square().sum((1, 2)) + self.linear(rows).square().sum((1, 2))
        ).mean()

    def _spread(self, dense: Tensor) -> Tensor:
        known = torch.nan_to_num(dense)
        return torch.where(self.is_logarithmic, known.clamp(min=0).log1p(), known)
