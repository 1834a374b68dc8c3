"""The feature cache of an installation with a feature server: what is written will be pushed."""

from collections.abc import Awaitable
from typing import cast

from redis.asyncio import Redis

from mesh.packing import Vector
from stores.features.changes import FeatureChanges, Kind
from stores.features.redis import RedisFeatureStore, affinity_key
from stores.redis_client import redis_errors


class RecordedFeatureStore(RedisFeatureStore):
    """`RedisFeatureStore` that notes what changed, after the change and before it is acknowledged.

    So nothing that was acknowledged is left unpushed; a repeat is pushed once more.
    """

    def __init__(self, client: Redis) -> None:
        super().__init__(client)
        self._changes = FeatureChanges(client)

    async def put_user_stats(
        self,
        user_id: int,
        *,
        follower_count: int | None = None,
        avg_engagement_rate: float | None = None,
    ) -> None:
        await super().put_user_stats(
            user_id, follower_count=follower_count, avg_engagement_rate=avg_engagement_rate
        )
        await self._changes.mark(Kind.USER, [user_id])

    async def put_taste(
        self, user_id: int, interest_vector: Vector | None, affinities: dict[int, float]
    ) -> None:
        await super().put_taste(user_id, interest_vector, affinities)
        await self._changes.mark(Kind.USER, [user_id])
        await self._changes.mark(Kind.AFFINITIES, [user_id])

    async def put_post(
        self,
        post_id: int,
        *,
        author_id: int,
        has_media: bool,
        embedding: Vector | None = None,
        topic: str = "",
    ) -> None:
        await super().put_post(
            post_id, author_id=author_id, has_media=has_media, embedding=embedding, topic=topic
        )
        await self._changes.mark(Kind.POST, [post_id])

    async def put_like_counts(self, like_counts: dict[int, int]) -> None:
        await super().put_like_counts(like_counts)
        await self._changes.mark(Kind.POST, list(like_counts))

    async def delete_post(self, post_id: int) -> None:
        await super().delete_post(post_id)
        await self._changes.mark(Kind.POST, [post_id])

    async def all_affinities(self, user_id: int) -> dict[int, float]:
        """The user's, by author."""
        with redis_errors():
            found = await cast(
                Awaitable[dict[bytes, bytes]], self._client.hgetall(affinity_key(user_id))
            )
        return {int(author_id): float(score) for author_id, score in found.items()}
