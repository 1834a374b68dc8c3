"""The Redis client that all Redis adapters share, and what its errors become."""

from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import Any, cast
from urllib.parse import urlsplit

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from mesh.errors import Unavailable
from mesh.redis_spans import LuaScript, trace_commands
from stores.redis_cluster import Address, RedisCluster
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
    "limit",
    "mailbox",
    "popular",
    "progress",
    "seen",
    "unproven",
    "viewers",
)


def open_redis(url: str) -> Redis:
    """A client that answers in bytes; connects at the first command. The caller closes it.

    Args:
        url: redis://, rediss:// or unix:// for one server; redis+cluster:// or rediss+cluster://
            for a cluster, of which one node is enough to find the others: HOST:PORT,HOST:PORT.

    A failed connection is tried once more at once, because the server may have restarted since it
    was last used. A time-out is not: it would hide an outage for as long again.
    """
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    if kind != "cluster":
        return _open_node(url)
    credentials, _, hosts = parts.netloc.rpartition("@")

    def open_node(address: Address) -> Redis:
        host, port = address
        at = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        netloc = f"{credentials}@{at}" if credentials else at
        return _open_node(parts._replace(scheme=scheme, netloc=netloc, path="/0").geturl())

    return RedisCluster([_address(host) for host in hosts.split(",")], open_node)


def _address(host: str) -> Address:
    parts = urlsplit(f"//{host}")
    return parts.hostname or "localhost", parts.port or 6379


def _open_node(url: str) -> Redis:
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
