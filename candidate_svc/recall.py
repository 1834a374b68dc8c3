"""Measuring recall beside the requests: some searches are repeated exactly."""

import asyncio
import contextvars
import random
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from opentelemetry.context import Context
from opentelemetry.trace import Link

from mesh import metrics, telemetry
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


class RecallProbe:
    """Repeats a share of searches exactly, in the background; an async context manager.

    Each repetition has a trace of its own, linked to the request's: it neither delays the response
    nor is it cut off by the request's deadline. Leaving the context ends those that run.

    Args:
        vectors: Where to search.
        share: Of the searches, 0 to 1.
        chance: Decides which.
    """

    def __init__(self, vectors: VectorStore, share: float, chance: random.Random) -> None:
        self._vectors = vectors
        self._share = share
        self._chance = chance
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def sample(self, search: Search, found: Sequence[Hit]) -> None:
        """Perhaps begins to measure how much of the exact answer was found."""
        if self._chance.random() >= self._share or len(self._running) >= _MAX_RUNNING:
            return
        measuring = self._measure(
            search,
            {hit.post_id for hit in found},
            service=telemetry.service(),
            links=telemetry.link_to(telemetry.inject()),
        )
        # An empty context: neither the request's span nor its deadline reach the task.
        task = asyncio.get_running_loop().create_task(measuring, context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._done)

    async def _measure(
        self, search: Search, found: set[int], service: str, links: list[Link]
    ) -> None:
        with (
            telemetry.as_service(service),
            telemetry.span("measure recall", context=Context(), links=links) as span,
        ):
            async with asyncio.timeout(_TIMEOUT_S):
                exact = {hit.post_id for hit in await search.run(self._vectors, exact=True)}
            if exact:
                recall = len(exact & found) / len(exact)
                metrics.observe(metrics.RETRIEVAL_RECALL, recall)
                span.set_attribute("feed.retrieval.recall", recall)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Asked for, so that asyncio does not report it; the span has it already.
            task.exception()
