"""After lines were loaded: what follows from them, computed once for everybody they touched.

The index remembers who is still to be settled, so that an import which was cut off goes on here
too. Everything is computed from the present state, as the workers do; repeats are harmless.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import timedelta
from typing import Protocol

from rich.progress import Progress

from cli.concurrency import for_each
from cli.index import Touched
from mesh.settings import Settings
from stores.connect import Connections
from stores.mailboxes.port import CAPACITY, Box
from workers.features import Features

_CHUNK = 200
_FOLLOWERS_PAGE = 1_000
# Of each author's newest posts, as many as a feed reads go to readers' mailboxes.
_RECENT = 100
# New vectors from which on rebuilding the index is worth its time.
_OPTIMIZE_FROM = 1_000

_Act = Callable[[Sequence[int]], Awaitable[None]]


class Unsettled(Protocol):
    """What is to be settled, such as an `Index`."""

    def touched(self, kind: Touched) -> list[int]:
        """What still is."""
        ...

    def settled(self, kind: Touched, ids: Iterable[int]) -> None:
        """These are not any more."""
        ...


async def settle(
    index: Unsettled, stores: Connections, settings: Settings, progress: Progress
) -> None:
    """Brings features, tastes, mailboxes and the vector index up to what was loaded."""
    settling = _Settling(stores, settings)
    if len(index.touched("post")) >= _OPTIMIZE_FROM:
        await stores.vectors().optimize()
    # Authors' rates need their posts' counts.
    acts: tuple[tuple[Touched, str, _Act], ...] = (
        ("post", "posts' features", settling.posts),
        ("author", "authors and mailboxes", settling.authors),
        ("reader", "readers' tastes", settling.readers),
    )
    for kind, what, act in acts:
        ids = index.touched(kind)
        bar = progress.add_task(what, total=len(ids), visible=bool(ids))
        for start in range(0, len(ids), _CHUNK):
            chunk = ids[start : start + _CHUNK]
            await act(chunk)
            await asyncio.to_thread(index.settled, kind, chunk)
            progress.advance(bar, len(chunk))


class _Settling:
    def __init__(self, stores: Connections, settings: Settings) -> None:
        self._posts = stores.posts()
        self._graph = stores.graph()
        self._mailboxes = stores.mailboxes()
        self._features = stores.feature_cache()
        self._push_limit = settings.push_limit
        self._proven_viewers = settings.exploration_viewers
        self._worker = Features(
            stores.posts(),
            stores.graph(),
            stores.impressions(),
            stores.feature_cache(),
            stores.vectors(),
            half_life=timedelta(days=settings.interest_half_life_days),
            proven_viewers=settings.exploration_viewers,
        )

    async def posts(self, post_ids: Sequence[int]) -> None:
        """Like counts and places among the popular; proven posts need no exploring."""
        found = await self._posts.get(post_ids)
        await self._worker.count_likes(list(found.values()))
        known = await self._features.posts(post_ids)
        await self._features.drop_unproven(
            [
                post_id
                for post_id, features in zip(post_ids, known, strict=True)
                if features is not None and features.viewer_count >= self._proven_viewers
            ]
        )

    async def authors(self, author_ids: Sequence[int]) -> None:
        """Follower counts, engagement rates, and newest posts into boxes that exist."""
        followers = await self._graph.follower_counts(author_ids)
        newest = await self._posts.newest_ids(author_ids, CAPACITY)

        async def settle_one(author_id: int) -> None:
            await self._author(author_id, followers[author_id], newest[author_id])

        await for_each(author_ids, settle_one)

    async def readers(self, user_ids: Sequence[int]) -> None:
        """Interest vectors and affinities."""
        await for_each(user_ids, self._worker.learn_taste)

    async def _author(self, author_id: int, followers: int, newest: Sequence[int]) -> None:
        await self._features.put_user_stats(author_id, follower_count=followers)
        if not newest:
            return
        await self._worker.rate_author(author_id)
        await self._mailboxes.push([Box("authored", author_id)], newest)
        if await self._graph.is_pulled(author_id):
            return
        if followers > self._push_limit:
            await self._graph.mark_pulled(author_id)
            return
        after = 0
        while page := await self._graph.followers_page(author_id, after, _FOLLOWERS_PAGE):
            boxes = [Box("mailbox", follower) for follower in page]
            await self._mailboxes.push(boxes, newest[:_RECENT])
            after = page[-1]
