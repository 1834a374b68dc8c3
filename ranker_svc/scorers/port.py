"""A model, as the ranker uses it."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ranker_svc.features import Features


class Scorer(Protocol):
    """Scores are probabilities of a like, or act as such: 0 to 1, higher is better.

    That range gives penalties, which are subtracted later, their meaning.
    """

    @property
    def version(self) -> str:
        """Which model it is, e.g. "heuristic/1"."""
        ...

    async def score(self, features: Features) -> NDArray[np.float32]:
        """One score a candidate, shape (n,); n is at least 1.

        One call serves a whole request. Raises `mesh.errors.Unavailable` when the model is away.
        """
        ...
