"""The embedded Valkey: it starts, keeps what it acknowledged, and cleans up after itself."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sized
from functools import partial
from pathlib import Path
from typing import cast

import psutil
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from local.valkey import Valkey
from mesh.errors import FailedPrecondition, Unavailable
from tests.eventually import eventually
from tests.fixtures.valkey import free_port

_START_AND_HANG = """
import asyncio, sys
from pathlib import Path
from local.valkey import Valkey

async def main():
    valkey = Valkey(Path(sys.argv[1]), int(sys.argv[2]))
    await valkey.start()
    print(valkey.pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[Valkey]:
    valkey = Valkey(tmp_path / "valkey", free_port())
    await valkey.start()
    yield valkey
    await valkey.stop()


async def pings(valkey: Valkey) -> bool:
    async with Redis.from_url(valkey.url) as client:
        return await cast(Awaitable[bool], client.ping())


def reached(written: Sized, wanted: int) -> bool:
    return len(written) >= wanted


def runs(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def kill(valkey: Valkey) -> None:
    assert valkey.pid is not None
    os.kill(valkey.pid, signal.SIGKILL)


async def test_it_answers_once_started_and_is_gone_once_stopped(valkey: Valkey) -> None:
    assert await pings(valkey)
    pid = valkey.pid
    assert pid is not None
    await valkey.stop()
    assert not runs(pid)
    await valkey.stop()


async def test_it_can_be_started_again_with_its_data(valkey: Valkey) -> None:
    async with Redis.from_url(valkey.url) as client:
        await client.set("kept", "yes")
    await valkey.stop()
    await valkey.start()
    async with Redis.from_url(valkey.url) as client:
        assert await client.get("kept") == b"yes"


async def test_after_kill_9_it_comes_back_with_all_that_it_acknowledged(valkey: Valkey) -> None:
    acknowledged: list[str] = []

    async def is_back() -> bool:
        try:
            return await pings(valkey)
        except RedisError:
            return False

    revived: Callable[[], Awaitable[bool]] = is_back

    async def write(writer: int) -> None:
        async with Redis.from_url(valkey.url) as client:
            for number in range(1_000_000):
                key = f"{writer}-{number}"
                await client.set(key, number)
                acknowledged.append(key)

    for _ in range(3):
        wanted = len(acknowledged) + 300
        writers = [asyncio.create_task(write(writer)) for writer in range(4)]
        await eventually(partial(reached, acknowledged, wanted))
        kill(valkey)
        await asyncio.gather(*writers, return_exceptions=True)

        back: bool = await eventually(revived, within_s=10)
        assert back
    async with Redis.from_url(valkey.url) as client:
        values = await client.mget(acknowledged)
    assert None not in values


async def test_what_a_killed_parent_left_behind_is_replaced(tmp_path: Path) -> None:
    port = free_port()
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _START_AND_HANG, str(tmp_path), str(port)),
        stdout=asyncio.subprocess.PIPE,
        cwd=Path(__file__).parent.parent,
    )
    assert parent.stdout is not None
    left_over = int(await parent.stdout.readline())
    async with Redis.from_url(f"redis://127.0.0.1:{port}/0") as client:
        await client.set("written", "before")
    parent.kill()
    await parent.wait()
    assert runs(left_over)

    # On another port too: two servers on one folder would destroy its files.
    valkey = Valkey(tmp_path, free_port())
    await valkey.start()
    try:
        assert not runs(left_over)
        async with Redis.from_url(valkey.url) as client:
            assert await client.get("written") == b"before"
    finally:
        await valkey.stop()


async def test_a_pid_that_is_another_programs_by_now_is_left_alone(tmp_path: Path) -> None:
    other = await asyncio.create_subprocess_exec(sys.executable, "-c", "input()", stdin=-1)
    (tmp_path / "valkey.pid").write_text(f"{other.pid}\n")
    valkey = Valkey(tmp_path, free_port())
    await valkey.start()
    await valkey.stop()
    assert other.returncode is None
    other.kill()
    await other.wait()


async def test_a_folder_in_use_is_refused_and_its_user_undisturbed(valkey: Valkey) -> None:
    assert valkey.pid is not None
    folder = Path(psutil.Process(valkey.pid).cwd())
    with pytest.raises(FailedPrecondition, match=str(folder)):
        await Valkey(folder, free_port()).start()
    assert await pings(valkey)


async def test_a_taken_port_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        valkey = Valkey(tmp_path, port)
        with pytest.raises(FailedPrecondition, match=rf"Port {port}.*FEED_VALKEY_PORT"):
            await valkey.start()
    await valkey.start()
    await valkey.stop()


async def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path, free_port(), options=("--maxclients", "none"))
    with pytest.raises(Unavailable, match=r"did not start.*maxclients"):
        await valkey.start()
