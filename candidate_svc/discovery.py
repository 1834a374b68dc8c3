"""Strangers' posts: the nearest to the reader's taste, or popular ones, and some to be tried."""

import asyncio
import random
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from feed.v1.common_pb2 import (
    CANDIDATE_SOURCE_DISCOVERY,
    CANDIDATE_SOURCE_EXPLORATION,
    CANDIDATE_SOURCE_POPULAR,
)

from candidate_svc.recall import RecallProbe, Search
from candidate_svc.rules import (
    Candidate,
    exploration_slots,
    from_strangers,
    ranked,
    shuffled,
    with_exploration,
)
from mesh import deadlines
from mesh.degrade import best_effort
from mesh.ids import first_id_at
from mesh.packing import Vector
from stores.features.port import FeatureStore
from stores.posts.port import PostStore
from stores.vectors.port import Hit, VectorStore

T = TypeVar("T")

# So many newest unproven posts share the exploration slots.
EXPLORATION_POOL = 200
# So many popular posts are asked for per one that is needed, as some are followed or blocked.
_POPULAR_SPARE = 2
_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to look for.

    Args:
        vector: The reader's interests; None without history.
        limit: The greatest number of candidates.
        created_after_ms: How old a stranger's post may be, milliseconds since the epoch.
        excluded: The reader, and the authors they follow or that a block hides.
        degraded: Receives the names of backends that are away.
    """

    vector: Vector | None
    limit: int
    created_after_ms: int
    excluded: frozenset[int]
    degraded: list[str] = field(default_factory=list)


class Discovery:
    """Retrieval of strangers' posts.

    Args:
        vectors: Searched around the interest vector.
        features: Has the popular and the unproven posts.
        posts: Knows their authors.
        probe: Measures the recall of some searches.
        exploration_share: Share of the candidates given to unproven posts.
        chance: Draws those.
    """

    def __init__(
        self,
        vectors: VectorStore,
        features: FeatureStore,
        posts: PostStore,
        probe: RecallProbe,
        *,
        exploration_share: float,
        chance: random.Random,
    ) -> None:
        self._vectors = vectors
        self._features = features
        self._posts = posts
        self._probe = probe
        self._exploration_share = exploration_share
        self._chance = chance

    async def retrieve(self, wanted: Wanted) -> list[Candidate]:
        """Best first, exploration last. Nearest posts, or popular ones when there is no history.

        When the vectors are away, popular ones take their place.
        """
        found, drawn = await asyncio.gather(self._found(wanted), self._drawn(wanted))
        slots = exploration_slots(wanted.limit, self._exploration_share)
        return with_exploration(found, drawn, slots, wanted.limit)

    async def _found(self, wanted: Wanted) -> list[Candidate]:
        if wanted.vector is not None:
            hits = await self._nearest(wanted, wanted.vector)
            if hits is not None:
                return [
                    Candidate(hit.post_id, hit.author_id, CANDIDATE_SOURCE_DISCOVERY, hit.score)
                    for hit in hits
                ]
        return await self._popular(wanted)

    async def _nearest(self, wanted: Wanted, vector: Vector) -> list[Hit] | None:
        """None when the vectors are away."""
        search = Search(vector, wanted.limit, wanted.created_after_ms, list(wanted.excluded))
        hits = await _attempt(search.run(self._vectors), None, "vectors", wanted)
        if hits is not None:
            self._probe.sample(search, hits)
        return hits

    async def _popular(self, wanted: Wanted) -> list[Candidate]:
        asked = self._features.popular(wanted.limit * _POPULAR_SPARE)
        hottest = [post_id for post_id, _ in await _attempt(asked, [], "popular", wanted)]
        strangers, authors = await self._strangers(hottest, wanted)
        return ranked(strangers[: wanted.limit], authors, CANDIDATE_SOURCE_POPULAR)

    async def _drawn(self, wanted: Wanted) -> list[Candidate]:
        if self._exploration_share <= 0:
            return []
        asked = self._features.unproven(EXPLORATION_POOL)
        pool = await _attempt(asked, [], "features", wanted)
        strangers, authors = await self._strangers(pool, wanted)
        return ranked(shuffled(strangers, self._chance), authors, CANDIDATE_SOURCE_EXPLORATION)

    async def _strangers(
        self, post_ids: Sequence[int], wanted: Wanted
    ) -> tuple[list[int], dict[int, int]]:
        """The posts that may be shown as a stranger's, and the authors of posts."""
        if not post_ids:
            return [], {}
        authors = await _attempt(self._posts.authors(post_ids), {}, "authors", wanted)
        oldest_id = first_id_at(wanted.created_after_ms)
        strangers = from_strangers(post_ids, authors, excluded=wanted.excluded, oldest_id=oldest_id)
        return strangers, authors


async def _attempt(call: Awaitable[T], fallback: T, backend: str, wanted: Wanted) -> T:
    # Half of what is left, so that what takes the backend's place has the other half.
    return await best_effort(
        call,
        fallback,
        backend=backend,
        degraded=wanted.degraded,
        timeout_s=deadlines.remaining(_TIMEOUT_S) / 2,
    )
