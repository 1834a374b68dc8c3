"""Features in Redis: a HASH a post and a HASH a user, vectors as packed little-endian float32.

`feature:post:{id}` and `viewers:{id}` share a hash tag, and so do `feature:user:{id}` and
`feature:affinity:{id}`: each pair may be written in one script or transaction on a cluster.
"""

from collections import defaultdict
from collections.abc import Awaitable, Mapping, Sequence
from typing import cast

from redis.asyncio import Redis

from mesh.packing import Vector, pack, unpack
from mesh.redis_spans import LuaScript
from stores.features.port import PostFeatures, UserFeatures
from stores.redis_client import PIPELINE, redis_errors

POPULAR_KEPT = 1_000
UNPROVEN_KEPT = 5_000
# Longer than discovery looks back (FEED_DISCOVERY_DAYS), so that no candidate lacks its features.
POST_S = 35 * 86_400
USER_S = 60 * 86_400
_POPULAR = "popular"
_UNPROVEN = "unproven"
_POST_FIELDS = [b"author_id", b"like_count", b"has_media", b"viewer_count", b"embedding", b"topic"]
_USER_FIELDS = ["follower_count", "avg_engagement_rate", "interest_vector"]
# Arguments of one script; Lua unpacks no more than some 8,000.
_ARGUMENTS = 1_000

# KEYS: the post. ARGV: its like count, seconds to live.
_PUT_LIKE_COUNT = LuaScript(
    "put like count",
    """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('HSET', KEYS[1], 'like_count', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
""",
)

# KEYS: the post, its viewers. ARGV: seconds to live, then user ids. A HyperLogLog counts a reader
# once however often they are added, so repeats are harmless. The count is kept beside the post's
# other features, because reading it is much more frequent than changing it.
_ADD_VIEWERS = LuaScript(
    "add viewers",
    """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if redis.call('PFADD', KEYS[2], unpack(ARGV, 2)) == 1 then
  redis.call('HSET', KEYS[1], 'viewer_count', redis.call('PFCOUNT', KEYS[2]))
end
redis.call('EXPIRE', KEYS[1], ARGV[1])
redis.call('EXPIRE', KEYS[2], ARGV[1])
return 1
""",
)


class RedisFeatureStore:
    """`stores.features.port.FeatureStore` in Redis. Writes keep features from expiring."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def user(self, user_id: int) -> UserFeatures:
        followers, rate, interest = await self._hash_values(_user_key(user_id), _USER_FIELDS)
        return UserFeatures(int(followers or 0), float(rate or 0), unpack(interest or b""))

    async def posts(self, post_ids: Sequence[int]) -> list[PostFeatures | None]:
        if not post_ids:
            return []
        with redis_errors():
            async with self._client.pipeline(transaction=False) as pipe:
                for post_id in post_ids:
                    pipe.hmget(_post_key(post_id), _POST_FIELDS)
                rows = await pipe.execute()
        return [_post_features(row) for row in rows]

    async def affinities(self, user_id: int, author_ids: Sequence[int]) -> list[float]:
        if not author_ids:
            return []
        values = await self._hash_values(affinity_key(user_id), list(map(str, author_ids)))
        return [float(value or 0) for value in values]

    async def _hash_values(self, key: str, fields: list[str]) -> list[bytes | None]:
        with redis_errors():
            return await cast(Awaitable[list[bytes | None]], self._client.hmget(key, fields))

    async def put_user_stats(
        self,
        user_id: int,
        *,
        follower_count: int | None = None,
        avg_engagement_rate: float | None = None,
    ) -> None:
        fields: dict[str, int | float] = {}
        if follower_count is not None:
            fields["follower_count"] = follower_count
        if avg_engagement_rate is not None:
            fields["avg_engagement_rate"] = avg_engagement_rate
        if fields:
            await self._put_hash(_user_key(user_id), fields, USER_S)

    async def put_taste(
        self, user_id: int, interest_vector: Vector | None, affinities: dict[int, float]
    ) -> None:
        user, affinity = _user_key(user_id), affinity_key(user_id)
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                if interest_vector is None:
                    pipe.hdel(user, "interest_vector")
                else:
                    pipe.hset(user, mapping={"interest_vector": pack(interest_vector)})
                pipe.expire(user, USER_S)
                pipe.delete(affinity)
                if affinities:
                    pipe.hset(
                        affinity, mapping={str(who): much for who, much in affinities.items()}
                    )
                    pipe.expire(affinity, USER_S)
                await pipe.execute()

    async def put_post(
        self,
        post_id: int,
        *,
        author_id: int,
        has_media: bool,
        embedding: Vector | None = None,
        topic: str = "",
    ) -> None:
        fields: dict[str, int | bytes | str] = {
            "author_id": author_id,
            "has_media": int(has_media),
            "topic": topic,
        }
        if embedding is not None:
            fields["embedding"] = pack(embedding)
        await self._put_hash(_post_key(post_id), fields, POST_S)

    async def _put_hash(
        self, key: str, fields: Mapping[str, int | float | bytes | str], ttl_s: int
    ) -> None:
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.hset(key, mapping=dict(fields))
                pipe.expire(key, ttl_s)
                await pipe.execute()

    async def put_like_counts(self, like_counts: dict[int, int]) -> None:
        counts = list(like_counts.items())
        for start in range(0, len(counts), PIPELINE):
            with redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for post_id, count in counts[start : start + PIPELINE]:
                        pipe.eval(_PUT_LIKE_COUNT, 1, _post_key(post_id), str(count), str(POST_S))
                    await pipe.execute()

    async def add_viewers(self, viewers: Sequence[tuple[int, int]]) -> None:
        by_post: dict[int, list[str]] = defaultdict(list)
        for post_id, user_id in viewers:
            by_post[post_id].append(str(user_id))
        calls = [
            (post_id, user_ids[start : start + _ARGUMENTS])
            for post_id, user_ids in by_post.items()
            for start in range(0, len(user_ids), _ARGUMENTS)
        ]
        for start in range(0, len(calls), PIPELINE):
            with redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for post_id, user_ids in calls[start : start + PIPELINE]:
                        keys = (_post_key(post_id), _viewers_key(post_id))
                        pipe.eval(_ADD_VIEWERS, 2, *keys, str(POST_S), *user_ids)
                    await pipe.execute()

    async def delete_post(self, post_id: int) -> None:
        with redis_errors():
            async with self._client.pipeline(transaction=False) as pipe:
                pipe.delete(_post_key(post_id), _viewers_key(post_id))
                pipe.zrem(_POPULAR, str(post_id))
                pipe.zrem(_UNPROVEN, str(post_id))
                await pipe.execute()

    async def put_popular(self, hotness: dict[int, float]) -> None:
        await self._put_ranked(_POPULAR, hotness, POPULAR_KEPT)

    async def popular(self, limit: int) -> list[tuple[int, float]]:
        if limit < 1:
            return []
        with redis_errors():
            ranked: list[tuple[bytes, float]] = await self._client.zrevrange(
                _POPULAR, 0, limit - 1, withscores=True
            )
        return [(int(post_id), hotness) for post_id, hotness in ranked]

    async def put_unproven(self, post_ids: Sequence[int]) -> None:
        # An id's order is its time.
        scores = {post_id: post_id for post_id in post_ids}
        await self._put_ranked(_UNPROVEN, scores, UNPROVEN_KEPT)

    async def _put_ranked(self, key: str, scores: Mapping[int, float], kept: int) -> None:
        if not scores:
            return
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.zadd(key, {str(post_id): score for post_id, score in scores.items()})
                pipe.zremrangebyrank(key, 0, -(kept + 1))
                await pipe.execute()

    async def drop_unproven(self, post_ids: Sequence[int]) -> None:
        if not post_ids:
            return
        with redis_errors():
            await self._client.zrem(_UNPROVEN, *map(str, post_ids))

    async def unproven(self, limit: int) -> list[int]:
        if limit < 1:
            return []
        with redis_errors():
            post_ids: list[bytes] = await self._client.zrevrange(_UNPROVEN, 0, limit - 1)
        return [int(post_id) for post_id in post_ids]


def _post_features(row: Sequence[bytes | None]) -> PostFeatures | None:
    author_id, like_count, has_media, viewer_count, embedding, topic = row
    if author_id is None:
        return None
    return PostFeatures(
        author_id=int(author_id),
        like_count=int(like_count or 0),
        has_media=has_media == b"1",
        viewer_count=int(viewer_count or 0),
        embedding=unpack(embedding or b""),
        topic=(topic or b"").decode(),
    )


def _post_key(post_id: int) -> str:
    return f"feature:post:{{{post_id}}}"


def _viewers_key(post_id: int) -> str:
    return f"viewers:{{{post_id}}}"


def _user_key(user_id: int) -> str:
    return f"feature:user:{{{user_id}}}"


def affinity_key(user_id: int) -> str:
    """The HASH of a user's affinities by author."""
    return f"feature:affinity:{{{user_id}}}"
