"""Snapshots in Redis: a string a feed, which expires by itself."""

from redis.asyncio import Redis

from stores.redis_client import redis_errors


class RedisSnapshotStore:
    """`stores.snapshots.port.SnapshotStore` in Redis."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def save(self, feed_id: str, snapshot: bytes, ttl_s: int) -> None:
        with redis_errors():
            await self._client.set(_key(feed_id), snapshot, ex=ttl_s)

    async def load(self, feed_id: str) -> bytes | None:
        with redis_errors():
            snapshot: bytes | None = await self._client.get(_key(feed_id))
        return snapshot


def _key(feed_id: str) -> str:
    return f"feed:{{{feed_id}}}"
