"""The Redis client that all Redis adapters share, and what its errors become."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from mesh.errors import Unavailable
from mesh.redis_spans import LuaScript, trace_commands
from stores.redis_connections import CancellablePool

MAX_CONNECTIONS = 64
CONNECT_TIMEOUT_S = 0.5
# A command that blocks on the server must block for less than this.
READ_TIMEOUT_S = 1.0
POOL_TIMEOUT_S = 1.0
# Commands in one pipeline; keeps the buffers of both sides small.
PIPELINE = 500
# What keys begin with, up to a colon, or are; as much as spans may tell of a key.
KEY_FAMILIES = (
    "authored",
    "events",
    "feature:affinity",
    "feature:post",
    "feature:pushed",
    "feature:unpushed",
    "feature:user",
    "feed",
    "mailbox",
    "popular",
    "progress",
    "seen",
    "unproven",
    "viewers",
)


def open_redis(url: str) -> Redis:
    """A client that answers in bytes; connects at the first command. The caller closes it.

    A failed connection is tried once more at once, because the server may have restarted since it
    was last used. A time-out is not: it would hide an outage for as long again.
    """
    pool = CancellablePool.from_url(
        url,
        max_connections=MAX_CONNECTIONS,
        timeout=POOL_TIMEOUT_S,
        socket_connect_timeout=CONNECT_TIMEOUT_S,
        socket_timeout=READ_TIMEOUT_S,
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
    client = Redis.from_pool(pool)
    trace_commands(client, KEY_FAMILIES)
    return client


@contextmanager
def redis_errors() -> Iterator[None]:
    """Turns whatever goes wrong between us and Redis into `mesh.errors.Unavailable`."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable(f"Redis cannot be used now ({type(error).__name__}).") from error


async def run_script(client: Redis, script: LuaScript, keys: list[str], *args: str | int) -> Any:
    """Runs a Lua script on keys of one hash slot.

    Scripts travel whole, not by their hash: they are short, and so they also work in pipelines, on
    every node of a cluster, and after a restart. The server compiles each once.
    """
    return await cast(Awaitable[Any], client.eval(script, len(keys), *keys, *map(str, args)))
