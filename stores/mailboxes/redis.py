"""Mailboxes in Redis: one ZSET a box.

A post is a member, its decimal id, scored by its id. Scores are doubles, so neighbours within 2^10
tie; members of one score are ordered as text, which for ids of equal length is their order too.

Two members that are no posts have an infinite score, so that trimming, which begins at the low end,
never takes them: BUILT says that the box is complete, BUILDING that somebody is filling it. A box
exists for pushes with either, and for readers only with BUILT.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import TypeVar

from redis.asyncio import Redis

from mesh.redis_spans import LuaScript
from stores.mailboxes.port import CAPACITY, IDLE_DAYS, Box, Progress
from stores.redis_client import PIPELINE, redis_errors

T = TypeVar("T")

_BUILT = b"built"
_BUILDING = b"building"
_MARKERS = (_BUILT, _BUILDING)
_IDLE_S = IDLE_DAYS * 86_400
_PROGRESS_S = 86_400

# KEYS: the box. ARGV: the capacity, then score and member of each post.
_PUSH = LuaScript(
    "push posts",
    """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('ZADD', KEYS[1], unpack(ARGV, 2))
local markers = redis.call('ZCOUNT', KEYS[1], '+inf', '+inf')
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -(ARGV[1] + markers + 1))
return 1
""",
)


class RedisMailboxStore:
    """`stores.mailboxes.port.MailboxStore` in Redis.

    Reads and builds keep a box from expiring, pushes do not: else an author's posts would keep the
    boxes of readers who never come back.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client

    async def newest(self, boxes: Sequence[Box], limit: int) -> list[list[int] | None]:
        found: list[list[int] | None] = []
        for chunk in _chunks(boxes):
            with redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for box in chunk:
                        pipe.zrevrange(_key(box), 0, limit + len(_MARKERS) - 1)
                        pipe.expire(_key(box), _IDLE_S)
                    replies = await pipe.execute()
            found += [_post_ids(members, limit) for members in replies[::2]]
        return found

    async def begin_build(self, box: Box) -> None:
        await self._build(box, {_BUILDING: "+inf"}, built=False)

    async def finish_build(self, box: Box, post_ids: Sequence[int]) -> None:
        posts = {str(post_id).encode(): str(post_id) for post_id in _newest(post_ids)}
        await self._build(box, {**posts, _BUILT: "+inf"}, built=True)

    async def _build(self, box: Box, scores: Mapping[bytes, str], *, built: bool) -> None:
        key = _key(box)
        with redis_errors():
            async with self._client.pipeline(transaction=True) as pipe:
                pipe.zadd(key, scores)
                if built:
                    pipe.zrem(key, _BUILDING)
                    # BUILT is the only marker left, and the highest member.
                    pipe.zremrangebyrank(key, 0, -(CAPACITY + 2))
                pipe.expire(key, _IDLE_S)
                await pipe.execute()

    async def push(self, boxes: Sequence[Box], post_ids: Sequence[int]) -> int:
        if not post_ids:
            return sum(await self._exist(boxes))
        posts = [str(post_id) for post_id in _newest(post_ids) for _ in ("score", "member")]
        existing = 0
        for chunk in _chunks(boxes):
            with redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for box in chunk:
                        pipe.eval(_PUSH, 1, _key(box), str(CAPACITY), *posts)
                    existing += sum(await pipe.execute())
        return existing

    async def _exist(self, boxes: Sequence[Box]) -> list[int]:
        replies: list[int] = []
        for chunk in _chunks(boxes):
            with redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for box in chunk:
                        pipe.exists(_key(box))
                    replies += await pipe.execute()
        return replies

    async def remove(self, boxes: Sequence[Box], post_ids: Sequence[int]) -> None:
        if not post_ids:
            return
        members = [str(post_id) for post_id in post_ids]
        for chunk in _chunks(boxes):
            with redis_errors():
                async with self._client.pipeline(transaction=False) as pipe:
                    for box in chunk:
                        pipe.zrem(_key(box), *members)
                    await pipe.execute()

    async def progress(self, task: str) -> Progress | None:
        with redis_errors():
            after = await self._client.get(_progress_key(task))
        return None if after is None else Progress(after=int(after))

    async def save_progress(self, task: str, progress: Progress | None) -> None:
        with redis_errors():
            if progress is None:
                await self._client.delete(_progress_key(task))
            else:
                await self._client.set(_progress_key(task), progress.after, ex=_PROGRESS_S)


def _key(box: Box) -> str:
    return f"{box.kind}:{{{box.owner_id}}}"


def _progress_key(task: str) -> str:
    return f"progress:{{{task}}}"


def _newest(post_ids: Sequence[int]) -> list[int]:
    """What of the ids can fit into a box; more would also be too many for one script."""
    return sorted(set(post_ids), reverse=True)[:CAPACITY]


def _post_ids(members: Sequence[bytes], limit: int) -> list[int] | None:
    if _BUILT not in members:
        return None
    return [int(member) for member in members if member not in _MARKERS][:limit]


def _chunks(items: Sequence[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(islice(rest, PIPELINE)):
        yield chunk
