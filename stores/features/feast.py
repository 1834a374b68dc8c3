"""feast+http://HOST:PORT: features that Feast serves, with the Redis cache beside it."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from redis.asyncio import Redis

from mesh.degrade import fell_back
from mesh.errors import FeedError, Internal
from stores.features.feast_client import AFFINITY, NO_AUTHOR, POST_STATS, USER_STATS, FeastClient
from stores.features.port import PostFeatures, UserFeatures
from stores.features.recorded import RecordedFeatureStore

T = TypeVar("T")
_Rows = Sequence[tuple[Any, ...]]


class FeastFeatureStore(RecordedFeatureStore):
    """`stores.features.port.FeatureStore` whose stored values Feast serves.

    A read asks Feast for scalars and, at the same time, the cache for vectors and viewers: vectors
    are some 60 times faster there than as Feast's JSON (docs/decisions/0017). The cache's answer
    has the scalars, too. They stand in for those of an entity that Feast does not know yet, and for
    all when Feast is late, away, or answers wrongly; then `features` is degraded.

    Writes go to the cache; `workers.feature_push` carries them on to Feast, some moments later.

    Args:
        client: Of the cache.
        feast: The feature server.
    """

    def __init__(self, client: Redis, feast: FeastClient) -> None:
        super().__init__(client)
        self._feast = feast

    async def user(self, user_id: int) -> UserFeatures:
        async with self._asking(
            USER_STATS,
            ("follower_count", "avg_engagement_rate"),
            {"user_id": [user_id]},
            lambda followers, rate: (int(followers), float(rate or 0)),
        ) as asked:
            cached = await super().user(user_id)
            [stats] = await asked or [None]
        if stats is None:
            return cached
        followers, rate = stats
        return replace(cached, follower_count=followers, avg_engagement_rate=rate)

    async def posts(self, post_ids: Sequence[int]) -> list[PostFeatures | None]:
        if not post_ids:
            return []
        async with self._asking(
            POST_STATS,
            ("author_id", "like_count", "has_media", "topic"),
            {"post_id": post_ids},
            _post,
        ) as asked:
            cached = await super().posts(post_ids)
            served = await asked or [None] * len(post_ids)
        return [_merged(ours, theirs) for ours, theirs in zip(cached, served, strict=True)]

    async def affinities(self, user_id: int, author_ids: Sequence[int]) -> list[float]:
        if not author_ids:
            return []
        # Of one author there may be many posts.
        authors = list(dict.fromkeys(author_ids))
        async with self._asking(
            AFFINITY,
            ("affinity_score",),
            {"user_id": [user_id] * len(authors), "author_id": authors},
            float,
        ) as asked:
            cached = await super().affinities(user_id, authors)
            served = await asked or [None] * len(authors)
        known = {
            author: theirs if theirs is not None else ours
            for author, ours, theirs in zip(authors, cached, served, strict=True)
        }
        return [known[author] for author in author_ids]

    @asynccontextmanager
    async def _asking(
        self,
        view: str,
        features: Sequence[str],
        entities: Mapping[str, Sequence[int]],
        parse: Callable[..., T | None],
    ) -> AsyncIterator["asyncio.Task[list[T | None] | None]"]:
        """What Feast knows of each entity, being asked for while the block runs.

        An entity is unknown when its first feature is null; Feast calls null PRESENT. All of it is
        None when Feast cannot be relied on.
        """

        async def ask() -> list[T | None] | None:
            try:
                return _parsed(await self._feast.read(view, features, entities), parse)
            except FeedError as error:
                fell_back("features", error)
                return None

        asked = asyncio.create_task(ask())
        try:
            yield asked
        finally:
            # When the cache fails, or the caller goes.
            asked.cancel()


@dataclass(frozen=True, slots=True)
class _Post:
    """A post's row in Feast; of a post that is no more, the author is 0.

    Args:
        topic: None in a row from before topics were kept there.
    """

    author_id: int
    like_count: int
    has_media: bool
    topic: str | None


def _post(author_id: Any, like_count: Any, has_media: Any, topic: Any) -> _Post:
    return _Post(
        int(author_id), int(like_count or 0), bool(has_media), None if topic is None else str(topic)
    )


def _parsed(rows: _Rows, parse: Callable[..., T | None]) -> list[T | None]:
    try:
        return [parse(*row) if row[0] is not None else None for row in rows]
    except (ValueError, TypeError) as error:
        raise Internal("Feast answered with other types.") from error


def _merged(ours: PostFeatures | None, theirs: _Post | None) -> PostFeatures | None:
    """Feast's values, with the viewers and the vector that only the cache has."""
    if theirs is None or theirs.author_id == NO_AUTHOR:
        return ours
    cached = ours or PostFeatures(
        theirs.author_id, theirs.like_count, theirs.has_media, viewer_count=0, embedding=None
    )
    return replace(
        cached,
        author_id=theirs.author_id,
        like_count=theirs.like_count,
        has_media=theirs.has_media,
        topic=cached.topic if theirs.topic is None else theirs.topic,
    )
