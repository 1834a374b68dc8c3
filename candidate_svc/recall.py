"""Measuring recall beside the requests: some searches are repeated exactly."""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass

from mesh import metrics, telemetry
from mesh.beside import Beside
from mesh.packing import Vector
from stores.vectors.port import Hit, VectorStore

_TIMEOUT_S = 10.0
# More at once would take the store's time from requests.
_MAX_RUNNING = 2


@dataclass(frozen=True, slots=True)
class Search:
    """The arguments of one vector search, so that it can be repeated."""

    vector: Vector
    limit: int
    created_after_ms: int
    excluded_author_ids: Sequence[int]

    async def run(self, vectors: VectorStore, *, exact: bool = False) -> list[Hit]:
        """The nearest posts, nearest first."""
        return await vectors.search(
            self.vector,
            limit=self.limit,
            created_after_ms=self.created_after_ms,
            excluded_author_ids=self.excluded_author_ids,
            exact=exact,
        )


class RecallProbe(Beside):
    """Repeats a share of searches exactly, beside the requests; an async context manager.

    Args:
        vectors: Where to search.
        share: Of the searches, 0 to 1.
        chance: Decides which.
    """

    def __init__(self, vectors: VectorStore, share: float, chance: random.Random) -> None:
        super().__init__("measure recall", _MAX_RUNNING)
        self._vectors = vectors
        self._share = share
        self._chance = chance

    def sample(self, search: Search, found: Sequence[Hit]) -> None:
        """Perhaps begins to measure how much of the exact answer was found."""
        if self._chance.random() < self._share:
            post_ids = {hit.post_id for hit in found}
            self.begin(lambda: self._measure(search, post_ids))

    async def _measure(self, search: Search, found: set[int]) -> None:
        async with asyncio.timeout(_TIMEOUT_S):
            exact = {hit.post_id for hit in await search.run(self._vectors, exact=True)}
        if exact:
            recall = len(exact & found) / len(exact)
            metrics.observe(metrics.RETRIEVAL_RECALL, recall)
            telemetry.annotate({"feed.retrieval.recall": recall})
