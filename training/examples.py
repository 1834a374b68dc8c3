"""What a model learns from: one example for each post that a reader was shown."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ranker_svc.features import CATEGORICAL, DENSE, Features

# A reader who looks at a post for this long is taken to read it.
LONG_DWELL_MS = 10_000


@dataclass(frozen=True, slots=True)
class Examples:
    """n showings, in the order of their times.

    Args:
        features: As the ranker had them when the feed was served.
        like: 1 where the reader liked the post after it was shown, else 0; float32 (n,).
        long_dwell: 1 where the reader looked for `LONG_DWELL_MS` or longer, 0 where for less, NaN
            where the client did not tell; float32 (n,).
        shown_at_ms: Milliseconds since the epoch, int64 (n,).
        post: Post ids, int64 (n,).
        feed: The same number for all posts of one feed; int64 (n,).
        position: The place in the feed, from 0; int32 (n,).
        score: What the model of that time gave, less penalties; float32 (n,).
        propensity: How likely the post was at its place, given the places before it; above 0 to 1,
            float32 (n,).
    """

    features: Features
    like: NDArray[np.float32]
    long_dwell: NDArray[np.float32]
    shown_at_ms: NDArray[np.int64]
    post: NDArray[np.int64]
    feed: NDArray[np.int64]
    position: NDArray[np.int32]
    score: NDArray[np.float32]
    propensity: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.like)

    @property
    def reader(self) -> NDArray[np.int64]:
        """User ids, int64 (n,)."""
        return self.features.ids[:, CATEGORICAL.index("reader")]

    def at(self, rows: NDArray[Any]) -> Self:
        """Those of these rows: indices, or a mask."""
        columns = {name: getattr(self, name)[rows] for name in _COLUMNS}
        features = Features(self.features.dense[rows], self.features.ids[rows])
        return type(self)(features=features, **columns)

    def write(self, file: Path) -> None:
        """As an .npz file, with the names of the features' columns."""
        columns = {name: getattr(self, name) for name in _COLUMNS}
        with file.open("wb") as opened:
            np.savez_compressed(
                opened,
                dense=self.features.dense,
                ids=self.features.ids,
                dense_names=DENSE,
                id_names=CATEGORICAL,
                allow_pickle=False,
                **columns,
            )

    @classmethod
    def read(cls, file: Path) -> Self:
        """What `write` wrote.

        Raises:
            ValueError: It was written for other features.
        """
        with np.load(file, allow_pickle=False) as found:
            names = (tuple(found["dense_names"]), tuple(found["id_names"]))
            if names != (DENSE, CATEGORICAL):
                raise ValueError(f"{file} has other features than this ranker: {names}")
            columns = {name: found[name] for name in _COLUMNS}
            return cls(features=Features(found["dense"], found["ids"]), **columns)


_COLUMNS = tuple(field.name for field in fields(Examples) if field.name != "features")
