"""Which features were changed and are not pushed to the feature server yet, in Redis.

A queue in which every user and every post is once at most, so it grows no longer than there are
users and posts, however long the feature server is away.
"""

from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import cast

from redis.asyncio import Redis

from mesh.redis_spans import LuaScript
from stores.redis_client import PIPELINE, redis_errors, run_script
from stores.redis_cluster import RedisCluster

_QUEUE = "feature:unpushed:{all}"
_COUNTER = "feature:unpushed:{all}:number"
# As long as the pairs themselves are kept.
_PUSHED_S = 60 * 86_400
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# KEYS: the queue, the counter. ARGV: who changed. A later change has a higher number.
_MARK = LuaScript(
    "mark changed features",
    """
local number = redis.call('INCR', KEYS[2])
for i = 1, #ARGV do redis.call('ZADD', KEYS[1], number, ARGV[i]) end
return number
""",
)

# KEYS: the queue. ARGV: how many. The time is the server's: of several pushers, all go by it.
_OLDEST = LuaScript(
    "oldest changed features",
    """
local time = redis.call('TIME')
return {time[1], time[2], redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1, 'WITHSCORES')}
""",
)

# KEYS: the queue. ARGV: who was pushed, and the number of their change; in pairs. Whoever changed
# since has another number, and stays.
_DONE = LuaScript(
    "forget pushed features",
    """
for i = 1, #ARGV, 2 do
  local number = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if number and tonumber(number) == tonumber(ARGV[i + 1]) then
    redis.call('ZREM', KEYS[1], ARGV[i])
  end
end
return redis.call('ZCARD', KEYS[1])
""",
)


class Kind(StrEnum):
    """What an entity's features are: one of the feature views, as a change names it."""

    USER = "user"
    POST = "post"
    # All pairs of one user.
    AFFINITIES = "affinities"


_FAMILIES = {
    Kind.USER: "feature:user",
    Kind.POST: "feature:post",
    Kind.AFFINITIES: "feature:affinity",
}
_SCAN = 1_000


@dataclass(frozen=True, slots=True)
class Change:
    """Whose features changed.

    Attributes:
        kind: Which features.
        entity_id: Of the user or the post.
        number: Higher for a later change.
    """

    kind: Kind
    entity_id: int
    number: int = 0

    @property
    def name(self) -> str:
        """As the queue has it."""
        return f"{self.kind}:{self.entity_id}"


class FeatureChanges:
    """The queue. Raises `mesh.errors.Unavailable` when Redis cannot be reached."""

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def mark(self, kind: Kind, entity_ids: Sequence[int]) -> None:
        """Puts them last. To be called after the change, so that a push sees it."""
        names = [Change(kind, entity_id).name for entity_id in entity_ids]
        for start in range(0, len(names), PIPELINE):
            with redis_errors():
                await run_script(
                    self._client, _MARK, [_QUEUE, _COUNTER], *names[start : start + PIPELINE]
                )

    async def mark_all(self) -> int:
        """Puts whoever has features last; returns how many changes that are."""
        count = 0
        with redis_errors():
            # Of a cluster, each master has its share of the keys.
            cluster = self._client if isinstance(self._client, RedisCluster) else None
            nodes = [self._client] if cluster is None else await cluster.masters()
            for node in nodes:
                for kind, family in _FAMILIES.items():
                    some: list[int] = []
                    async for key in node.scan_iter(f"{family}:{{*}}", count=_SCAN):
                        some.append(int(key[len(family) + 2 : -1]))
                        if len(some) == PIPELINE:
                            await self.mark(kind, some)
                            count, some = count + len(some), []
                    await self.mark(kind, some)
                    count += len(some)
        return count

    async def oldest(self, limit: int) -> tuple[datetime, list[Change]]:
        """Up to `limit` changes, first those that wait the longest; and the server's time.

        What is read after this call is not older than that time.
        """
        with redis_errors():
            seconds, micros, flat = await run_script(self._client, _OLDEST, [_QUEUE], limit)
        at = _EPOCH + timedelta(seconds=int(seconds), microseconds=int(micros))
        names, numbers = flat[::2], flat[1::2]
        return at, [_change(name, number) for name, number in zip(names, numbers, strict=True)]

    async def done(self, changes: Sequence[Change]) -> int:
        """Takes out those that did not change again; returns how many are left."""
        pairs = [part for change in changes for part in (change.name, change.number)]
        with redis_errors():
            left = await run_script(self._client, _DONE, [_QUEUE], *pairs)
        return int(left)

    async def pushed_authors(self, user_id: int) -> set[int]:
        """The authors of the user's pairs that the feature server may have."""
        with redis_errors():
            found = await cast(Awaitable[set[bytes]], self._client.smembers(_pushed_key(user_id)))
        return set(map(int, found))

    async def add_pushed_authors(self, user_id: int, author_ids: Sequence[int]) -> None:
        """Notes them, before they are pushed."""
        if author_ids:
            with redis_errors():
                async with self._client.pipeline(transaction=True) as pipe:
                    pipe.sadd(_pushed_key(user_id), *map(str, author_ids))
                    pipe.expire(_pushed_key(user_id), _PUSHED_S)
                    await pipe.execute()

    async def drop_pushed_authors(self, user_id: int, author_ids: Sequence[int]) -> None:
        """Forgets those whose pairs were pushed as null."""
        if author_ids:
            with redis_errors():
                gone = self._client.srem(_pushed_key(user_id), *map(str, author_ids))
                await cast(Awaitable[int], gone)


def _change(name: bytes, number: bytes) -> Change:
    kind, _, entity_id = name.decode().partition(":")
    return Change(Kind(kind), int(entity_id), int(float(number)))


def _pushed_key(user_id: int) -> str:
    return f"feature:pushed:{{{user_id}}}"
