"""random://: scores by chance, the mock of a model."""

import hashlib

import numpy as np
from numpy.typing import NDArray

from ranker_svc.features import COLUMN, Features


class RandomScorer:
    """Uniform scores from 0 to 1.

    With a seed, equal requests get equal scores: the generator starts from the seed and a digest of
    all features but the age, which alone changes while one waits.

    Args:
        seed: None for other scores each time.
    """

    def __init__(self, seed: int | None = None) -> None:
        self._seed = seed
        self.version = "random" if seed is None else f"random/seed={seed}"

    async def score(self, features: Features) -> NDArray[np.float32]:
        """One number a row, in the order of rows."""
        return np.random.default_rng(self._start(features)).random(len(features), np.float32)

    def _start(self, features: Features) -> list[int] | None:
        if self._seed is None:
            return None
        timeless = np.delete(features.dense, COLUMN["age_hours"], axis=1)
        digest = hashlib.blake2b(np.ascontiguousarray(timeless).tobytes(), digest_size=8).digest()
        return [self._seed, int.from_bytes(digest)]
