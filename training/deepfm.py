"""DeepFM (Guo et al. 2017) in PyTorch: a factorisation machine and a deep net on shared embeddings.

Nothing of the mesh is imported here, so that the peer check can run it in another environment.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
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
        bins: Of a number.
        hidden: Units of the deep part's layers.
    """

    buckets: tuple[int, ...]
    dense: int
    heads: int
    width: int = 16
    bins: int = 16
    hidden: tuple[int, ...] = (128, 64)


class DeepFM(nn.Module):
    """Each field of ids, and each number, has an embedding that both parts use.

    A number's embedding is piecewise linear in it (Gorishniy et al. 2022): trees find steps in a
    number by themselves, a net needs them shown. The bins are inside, so numbers come as they are.

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
        # A number is spread over bins, each with a vector; the first vector counts always.
        spread = (shape.dense, shape.bins + 1)
        self.dense_embedding = nn.Parameter(torch.empty(*spread, shape.width))
        self.dense_linear = nn.Parameter(torch.zeros(*spread, shape.heads))
        self.bias = nn.Parameter(torch.zeros(shape.heads))
        # One factorisation machine for all heads; each head weighs its dimensions.
        self.pairs = nn.Parameter(torch.ones(shape.width, shape.heads))
        layers: list[nn.Module] = []
        units = fields * shape.width
        for following in shape.hidden:
            layers += [nn.Dropout(dropout), nn.Linear(units, following), nn.ReLU()]
            units = following
        self.deep = nn.Sequential(*layers, nn.Linear(units, shape.heads))
        starts = torch.tensor((0, *shape.buckets[:-1])).cumsum(0)
        self.register_buffer("starts", starts)
        is_logarithmic = torch.zeros(shape.dense, dtype=torch.bool)
        is_logarithmic[list(logarithmic)] = True
        self.register_buffer("is_logarithmic", is_logarithmic)
        self.register_buffer("low", torch.zeros(shape.dense, shape.bins))
        self.register_buffer("wide", torch.ones(shape.dense, shape.bins))
        # Platt's: the calibrated logit is slope * logit + offset.
        self.register_buffer("slope", torch.ones(shape.heads))
        self.register_buffer("offset", torch.zeros(shape.heads))
        nn.init.zeros_(self.linear.weight)
        nn.init.normal_(self.embedding.weight, std=0.05)
        nn.init.normal_(self.dense_embedding, std=0.05)

    def learn_bins(self, dense: Tensor) -> None:
        """Takes the bins of each number, with about as many rows each, from the training set."""
        bins = self.low.shape[1]
        shares = torch.linspace(0, 1, bins + 1, dtype=torch.float64)
        for column, values in enumerate(self._spread(dense).T.cpu().double()):
            edges = torch.from_numpy(np.unique(np.quantile(values.numpy(), shares.numpy())))
            count = len(edges) - 1
            # A number of few values has fewer bins: what remains lies where no value comes.
            self.low[column] = torch.finfo(torch.float32).max
            self.wide[column] = 1
            self.low[column, :count] = edges[:-1]
            self.wide[column, :count] = edges.diff()

    def forward(self, dense: Tensor, categorical: Tensor) -> Tensor:
        """Logits before calibration, (n, heads), of numbers (n, dense) and ids (n, fields)."""
        rows = categorical + self.starts
        filled = self._filled(dense)
        of_numbers = torch.einsum("ndb,dbw->ndw", filled, self.dense_embedding)
        embeddings = torch.cat((self.embedding(rows), of_numbers), 1)
        # The sum over all pairs of fields of products, by the square of the sum.
        products = (embeddings.sum(1).square() - embeddings.square().sum(1)) / 2
        logits: Tensor = (
            self.linear(rows).sum(1)
            + torch.einsum("ndb,dbh->nh", filled, self.dense_linear)
            + self.bias
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

    def _filled(self, dense: Tensor) -> Tensor:
        """How far each number fills each of its bins, 0 to 1, after a 1: (n, dense, bins + 1).

        A value beyond what the training set had is taken for its least or greatest.
        """
        share = (self._spread(dense).unsqueeze(2) - self.low) / self.wide
        return nn.functional.pad(share.clamp(0, 1), (1, 0), value=1.0)

    def _spread(self, dense: Tensor) -> Tensor:
        known = torch.nan_to_num(dense)
        return torch.where(self.is_logarithmic, known.clamp(min=0).log1p(), known)
