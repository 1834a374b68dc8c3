"""Text embedding: the meaning of a text as a vector."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Embedder(Protocol):
    """Deterministic: the same text gives the same vector, alone or in a batch (to 1e-5)."""

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of shape (len(texts), 384). Runs in a thread, not on the loop."""
        ...
