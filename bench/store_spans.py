"""What spans and metrics of store operations cost: `python -m bench.store_spans`.

Prints the CPU time of an operation without them, in a trace that is not kept, and in one that is;
exporting comes on top. The best of several rounds, which take turns. A Valkey of its own is started
in a temporary folder.
"""

import asyncio
import socket
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from pathlib import Path

from opentelemetry import trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.trace import NonRecordingSpan, SpanContext
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table
from sqlalchemy import select

from local.valkey import Valkey
from mesh import telemetry
from mesh.settings import Settings
from stores.redis_client import open_redis
from stores.sql.database import Database
from stores.sql.migrate import migrate
from stores.sql.tables import posts

ROUNDS = 60
POSTS = 150
FIELDS = ["author_id", "like_count", "has_media", "viewer_count", "embedding"]

Work = Callable[[], Awaitable[object]]


def in_unkept_trace() -> AbstractContextManager[object]:
    """Within it, the current span is one that the sampler has dropped."""
    return trace.use_span(NonRecordingSpan(SpanContext(trace_id=1, span_id=1, is_remote=False)))


async def cpu_us(work: Work, times: int) -> float:
    """Microseconds of CPU for one round trip of the work."""
    started = time.process_time()
    for _ in range(times):
        await work()
    return (time.process_time() - started) / times * 1e6


async def compare(plain: Work, traced: Work, times: int) -> tuple[float, float, float]:
    """CPU microseconds without spans, in a trace that is not kept, and in one that is."""
    best = [float("inf")] * 3
    for _ in range(ROUNDS):
        for n, (work, within) in enumerate(
            (
                (plain, suppress_instrumentation()),
                (traced, in_unkept_trace()),
                (traced, telemetry.span("request")),
            )
        ):
            with within:
                best[n] = min(best[n], await cpu_us(work, times))
    return best[0], best[1], best[2]


def get(client: Redis) -> Work:
    return lambda: client.get("feed:{1}")


def pipeline(client: Redis) -> Work:
    async def read() -> None:
        async with client.pipeline(transaction=False) as pipe:
            for post_id in range(POSTS):
                pipe.hmget(f"feature:post:{{{post_id}}}", FIELDS)
            await pipe.execute()

    return read


def statement(database: Database) -> Work:
    query = select(posts.c.post_id).where(posts.c.post_id == 1)

    async def read() -> None:
        async with database.read() as connection:
            await connection.execute(query)

    return read


async def main() -> None:
    telemetry.setup(Settings())
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        valkey = Valkey(Path(folder) / "valkey", probe.getsockname()[1])
        probe.close()
        await valkey.start()
        url = f"sqlite+aiosqlite:///{folder}/feed.db"
        await migrate(url)
        client, database = open_redis(valkey.url), Database(url)
        plain = Redis.from_pool(client.connection_pool)
        rows = {
            "Redis: GET": await compare(get(plain), get(client), 50),
            f"Redis: pipeline of {POSTS} HMGET": await compare(
                pipeline(plain), pipeline(client), 20
            ),
            "SQLite: SELECT": await compare(statement(database), statement(database), 20),
        }
        await database.close()
        await client.aclose()
        await valkey.stop()
    table = Table("operation", "without, us", "not kept", "kept")
    for name, (without, unkept, kept) in rows.items():
        table.add_row(name, f"{without:.0f}", f"{unkept / without:.3f}x", f"{kept / without:.3f}x")
    Console().print(table)


if __name__ == "__main__":
    asyncio.run(main())
