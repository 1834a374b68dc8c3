"""A model, as the ranker uses it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

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


@dataclass(frozen=True, slots=True)
class Lineup:
    """The models that rank now.

    Args:
        scorers: Asked in this order until one answers; behind all of them stands the heuristic.
        shadow: Scores a share of the requests, too, but its scores do not count.
        shadow_share: Of the requests, 0 to 1.
    """

    scorers: tuple[Scorer, ...] = ()
    shadow: Scorer | None = None
    shadow_share: float = 0.0


# Asked once a request, which then stays with what it was told.
CurrentLineup: TypeAlias = Callable[[], Lineup]
