"""A cancelled caller of Redis ends, at whichever moment it is cancelled, and harms nobody else."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
from redis.asyncio import Redis
from redis.exceptions import TimeoutError as RedisTimeout

from local.valkey import Valkey
from stores.redis_client import MAX_CONNECTIONS, open_redis
from tests.fixtures.valkey import free_port

CANCELLATIONS = 300
AT_ONCE = 20
# Of answers' numbers: the longest come in several pieces.
REPEATS = (1, 1, 1, 20_000)


# A machine that is busy with other things is not what is tested here.
PATIENT = "socket_timeout=30&socket_connect_timeout=30&timeout=30"


@pytest.fixture(params=["tcp", "unix socket", "few connections"])
async def client(
    request: pytest.FixtureRequest, valkey_url: str, short_dir: Path
) -> AsyncIterator[Redis]:
    match request.param:
        case "tcp":
            client = open_redis(f"{valkey_url}?{PATIENT}")
            yield client
            await client.aclose()
        case "few connections":
            client = open_redis(f"{valkey_url}?max_connections=4&{PATIENT}")
            yield client
            await client.aclose()
        case "unix socket":
            valkey = Valkey(short_dir / "data", free_port(), ("--unixsocket", f"{short_dir}/s"))
            await valkey.start()
            client = open_redis(f"unix://{short_dir}/s?{PATIENT}")
            yield client
            await client.aclose()
            await valkey.stop()


class Echoes:
    """Commands whose answers tell to whom they belong."""

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._random = random.Random(7)
        self._numbers = count()

    async def ask(self) -> None:
        text = b"%d " % next(self._numbers) * self._random.choice(REPEATS)
        if self._random.random() < 0.5:
            assert await self._client.echo(text) == text
            return
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.echo(text)
            pipe.echo(text[::-1])
            assert await pipe.execute() == [text, text[::-1]]

    async def turns(self) -> None:
        """Lets the loop turn a random number of times."""
        for _ in range(self._random.randrange(12)):
            await asyncio.sleep(0)


async def all_connections_work(client: Redis) -> None:
    answers = await asyncio.gather(*(client.echo(str(n)) for n in range(MAX_CONNECTIONS)))
    assert answers == [str(n).encode() for n in range(MAX_CONNECTIONS)]


async def test_no_cancellation_is_lost(client: Redis) -> None:
    echoes = Echoes(client)

    async def ask_forever() -> None:
        task = asyncio.current_task()
        assert task is not None
        while not task.cancelling():
            await echoes.ask()

    running = [asyncio.create_task(ask_forever()) for _ in range(AT_ONCE)]
    cancelled = []
    for n in range(CANCELLATIONS):
        await echoes.turns()
        running[n % AT_ONCE].cancel()
        cancelled.append(running[n % AT_ONCE])
        running[n % AT_ONCE] = asyncio.create_task(ask_forever())
    for task in running:
        task.cancel()
    results = await asyncio.gather(*cancelled, *running, return_exceptions=True)
    assert [r for r in results if not isinstance(r, asyncio.CancelledError)] == []
    await all_connections_work(client)


async def test_no_deadline_is_lost(client: Redis) -> None:
    echoes = Echoes(client)
    rng = random.Random(7)
    kept = lost = 0

    async def ask_in_time() -> None:
        nonlocal kept, lost
        try:
            async with asyncio.timeout(rng.random() * 0.02) as limit:
                while not limit.expired():
                    await echoes.ask()
                lost += 1
        except TimeoutError:
            kept += 1

    for _ in range(CANCELLATIONS // AT_ONCE):
        await asyncio.gather(*(ask_in_time() for _ in range(AT_ONCE)))
    assert (kept, lost) == (CANCELLATIONS, 0)
    await all_connections_work(client)


async def test_a_cancelled_waiter_passes_its_connection_on(valkey_url: str) -> None:
    client = open_redis(f"{valkey_url}?max_connections=1")

    async def hold() -> None:
        await client.echo("held")
        # The connection has just been given back, and `first` was woken for it.
        first.cancel()

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    first = asyncio.create_task(client.echo("first"))  # type: ignore[arg-type]
    await asyncio.sleep(0)
    second = asyncio.create_task(client.echo("second"))  # type: ignore[arg-type]
    assert await second == b"second"
    with pytest.raises(asyncio.CancelledError):
        await first
    await holder
    await client.aclose()


async def test_nothing_follows_a_command_that_was_cancelled_half_sent(valkey_url: str) -> None:
    client = open_redis(f"{valkey_url}?max_connections=1")
    await client.echo("connects")
    for turns in range(10):
        task = asyncio.create_task(client.echo(b"x" * 20_000_000))  # type: ignore[arg-type]
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await client.echo(str(turns)) == str(turns).encode()
    await client.aclose()


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(lambda client: client.ping(), id="an answer"),
        pytest.param(lambda client: client.echo(b"x" * 50_000_000), id="room to send"),
    ],
)
async def test_a_server_that_hangs_is_a_timeout(
    silent_redis_url: str, command: Callable[[Redis], Awaitable[object]]
) -> None:
    client = open_redis(silent_redis_url)
    with pytest.raises(RedisTimeout):
        await command(client)
    await client.aclose()
