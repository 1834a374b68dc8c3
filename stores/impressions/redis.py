"""Recent impressions in Redis: a ZSET a reader, of "post_id:time" scored by time.

Each showing is a member, so that repeats of one report count once.
"""

from collections.abc import Sequence

from redis.asyncio import Redis

from mesh.ids import now_ms
from stores.impressions.port import Seen
from stores.redis_client import redis_errors

# Far longer than an impression takes through the event log into the long memory, also after a
# restart of its worker. The long memory has most of these too: whoever merges the two takes the
# greater count of a post, not the sum.
KEPT_S = 15 * 60


class RedisRecentSeen:
    """`stores.impressions.port.RecentSeen` in Redis."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def record(self, user_id: int, post_ids: Sequence[int], seen_at_ms: int) -> None:
        """Adds showings; those older than 15 minutes, and posts past them, are forgotten."""
        if not post_ids:
            return
        key = _key(user_id)
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.zadd(key, {f"{post_id}:{seen_at_ms}": seen_at_ms for post_id in post_ids})
                pipe.zremrangebyscore(key, "-inf", f"({_oldest_ms()}")
                pipe.expire(key, KEPT_S)
                await pipe.execute()

    async def seen(self, user_id: int) -> list[Seen]:
        """What the reader saw in the last 15 minutes, the latest first."""
        with redis_errors():
            members: list[bytes] = await self._client.zrange(
                _key(user_id), "+inf", str(_oldest_ms()), byscore=True, desc=True
            )
        counts: dict[int, int] = {}
        latest: dict[int, int] = {}
        for member in members:
            post_id, at_ms = map(int, member.split(b":"))
            counts[post_id] = counts.get(post_id, 0) + 1
            latest.setdefault(post_id, at_ms)
        return [Seen(post_id, counts[post_id], at_ms) for post_id, at_ms in latest.items()]


def _key(user_id: int) -> str:
    return f"seen:{{{user_id}}}"


def _oldest_ms() -> int:
    return now_ms() - KEPT_S * 1000
