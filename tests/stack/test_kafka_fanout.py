"""Fan-out over Kafka by real worker processes: rebalances, and a broker that is killed."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from mesh.errors import DeadlineExceeded, Unavailable
from mesh.settings import Settings
from stack.daemon import Daemon
from stores.connect import Connections
from stores.mailboxes.port import Box
from stores.posts.port import StoredPost
from stores.sql.migrate import migrate
from tests.eventually import eventually
from tests.fixtures.sql import fresh_ids, sqlite_url
from tests.fixtures.stack import Stack
from tests.workers.backstage import post_event

ROOT = Path(__file__).parent.parent.parent
AUTHORS, FOLLOWERS, POSTS, AHEAD = 20, 5, 2_000, 400

pytestmark = [pytest.mark.stack, pytest.mark.timeout(400)]


@asynccontextmanager
async def worker(settings: Settings, log: Path, name: str) -> AsyncIterator[None]:
    """A process of `python -m workers NAME`, killed at the end unless it has ended."""
    env = {
        **os.environ,
        "FEED_DATA_DIR": str(settings.data_dir),
        "FEED_SQL_URL": settings.sql_url,
        "FEED_REDIS_URL": settings.redis_url,
        "FEED_EVENTS_URL": settings.events_url,
        "FEED_METRICS_PORT": "0",
    }
    with log.open("ab") as out:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "workers", name), cwd=ROOT, env=env, stdout=out, stderr=out
        )
    try:
        yield
    except AssertionError as error:
        error.add_note(f"{name} ended with {process.returncode}; {log.read_text()[-3000:]}")
        raise
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


Arrived = Callable[[], Awaitable[int]]


async def send(
    stores: Connections, authors: Sequence[int], arrived: Arrived
) -> dict[int, list[int]]:
    """Publishes posts of the authors in turn, as the gateway does; ids by author, oldest first.

    Never so far ahead of the mailboxes that nothing would be under way while something happens.
    """
    sent: dict[int, list[int]] = {author: [] for author in authors}
    for number, post_id in enumerate(fresh_ids(POSTS)):
        if number % AUTHORS == 0:
            await eventually(partial(_has, arrived, number - AHEAD), within_s=120, every_s=0.1)
        author = authors[number % AUTHORS]
        post = StoredPost(post_id, author, "", (), (), datetime.now(UTC))
        await create_surely(stores, post)
        sent[author].append(post_id)
    return sent


async def create_surely(stores: Connections, post: StoredPost) -> None:
    """As a client with an idempotency key: again, where the database was too busy to answer."""
    while True:
        with suppress(Unavailable, DeadlineExceeded):
            if post.post_id not in await stores.posts().authors([post.post_id]):
                await stores.posts().create(post, post_event(post.post_id, post.author_id))
            return


@asynccontextmanager
async def publishing(
    stores: Connections, authors: Sequence[int], arrived: Arrived
) -> AsyncIterator[asyncio.Task[dict[int, list[int]]]]:
    """`send` as a task that does not outlive the block."""
    task = asyncio.create_task(send(stores, authors, arrived))
    try:
        yield task
    finally:
        # If it has failed, that is why nothing arrives.
        if not task.cancel():
            task.result()
        with suppress(asyncio.CancelledError):
            await task


async def _has(arrived: Arrived, count: int) -> bool:
    return await arrived() >= count


async def test_two_fan_out_workers_and_a_killed_broker_deliver_every_post_once(
    stack: Stack, own_kafka: Daemon, tmp_path: Path
) -> None:
    settings = Settings(
        data_dir=tmp_path,
        sql_url=sqlite_url(tmp_path / "feed.db"),
        redis_url=await stack.url("valkey"),
        events_url=own_kafka.server.url,
    )
    await migrate(settings.sql_url)
    authors = fresh_ids(AUTHORS)
    readers = {author: fresh_ids(FOLLOWERS) for author in authors}
    async with Connections(settings) as stores:
        mailboxes, graph = stores.mailboxes(), stores.graph()
        await graph.follow_many([(r, author) for author in authors for r in readers[author]])
        for reader in (r for of_author in readers.values() for r in of_author):
            await mailboxes.finish_build(Box("mailbox", reader), [])

        async def inbox(reader: int) -> list[int]:
            [box] = await mailboxes.newest([Box("mailbox", reader)], 800)
            return box or []

        async def arrived() -> int:
            return sum([len(await inbox(readers[author][0])) for author in authors])

        log = tmp_path / "workers.log"
        async with (
            worker(settings, log, "relay"),
            worker(settings, log, "fanout"),
            publishing(stores, authors, arrived) as sending,
        ):
            # The second worker joins in the middle; later the broker dies, and then that worker.
            await eventually(partial(_has, arrived, POSTS // 8), within_s=120, every_s=0.1)
            async with worker(settings, log, "fanout"):
                await eventually(partial(_has, arrived, POSTS // 3), within_s=120, every_s=0.1)
                assert not sending.done()
                await own_kafka.kill()
                await own_kafka.start()
                sent = await sending
                await eventually(partial(_has, arrived, POSTS * 2 // 3), within_s=120, every_s=0.1)
            await eventually(partial(_has, arrived, POSTS), within_s=120, every_s=0.1)
            for author in authors:
                for reader in readers[author]:
                    # Exactly the author's posts, each once, the newest first.
                    assert await inbox(reader) == sent[author][::-1]

            async def all_done() -> bool:
                waiting = await stores.outbox().pending(1)
                posts = await stores.events().lag("fanout", post_event(1, 1).topic)
                return not waiting and posts == 0

            await eventually(all_done, within_s=60, every_s=0.2)
