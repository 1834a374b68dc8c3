"""Choices by chance, as off-policy estimators take them: rounds of a contextual bandit."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rounds:
    """n choices, each of one option among k at most.

    Args:
        options: What is known of each option, float32 (m, features).
        pool: Rows of `options` that a choice was among, -1 where it has fewer; int64 (n, k).
        position: The place that the choice was for, int32 (n,).
        chosen: Which column of `pool` it was, int64 (n,).
        reward: 0 or 1, float32 (n,).
        reader: Whose choices depend on one another, int64 (n,).
        feed: Choices with the same number never lie on both sides of a split; int64 (n,).
        logged: How likely the log's policy chooses each column; rows sum to 1, float64 (n, k).
        candidate: The same of the policy to be judged.
    """

    options: NDArray[np.float32]
    pool: NDArray[np.int64]
    position: NDArray[np.int32]
    chosen: NDArray[np.int64]
    reward: NDArray[np.float32]
    reader: NDArray[np.int64]
    feed: NDArray[np.int64]
    logged: NDArray[np.float64]
    candidate: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.reward)

    def write(self, file: Path) -> None:
        """As an .npz file."""
        columns: dict[str, Any] = {each.name: getattr(self, each.name) for each in fields(self)}
        with file.open("wb") as opened:
            np.savez(opened, allow_pickle=False, **columns)

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `write` wrote."""
        with np.load(file, allow_pickle=False) as found:
            return cls(**{each.name: found[each.name] for each in fields(cls)})
