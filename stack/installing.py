"""Servers are installed once, into a cache that all checkouts share."""

import asyncio
import fcntl
import hashlib
import os
import shutil
import signal
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from mesh.errors import FailedPrecondition

_LAST_LINES = 8


async def once(
    cache: Path, name: str, definition: bytes, build: Callable[[Path], Awaitable[None]]
) -> Path:
    """The folder that `build` has filled, built by whoever comes first.

    It is complete or not there at all; who comes while it is being built waits.

    Args:
        cache: Where all installations are.
        name: What is installed.
        definition: Whatever decides what `build` makes; another definition is another folder.
        build: Fills the empty folder that it is given; that folder is moved when it is full, so
            nothing in it may hold its own path.

    Raises:
        FailedPrecondition: From `build`.
    """
    key = hashlib.sha256(definition).hexdigest()[:12]
    folder = cache / f"{name}-{key}"
    if folder.exists():
        return folder
    await asyncio.to_thread(cache.mkdir, parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("w") as lock:
        await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
        if not folder.exists():
            unfinished = cache / f".{name}-{key}"
            await asyncio.to_thread(shutil.rmtree, unfinished, ignore_errors=True)
            unfinished.mkdir()
            await build(unfinished)
            unfinished.rename(folder)
    return folder


async def run(*command: str, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    """Runs a command of an installation, with low priority; returns what it printed.

    Raises:
        FailedPrecondition: The program is not there, or ends with an error; the detail has the end
            of what it printed.
    """
    program = command[0]
    if shutil.which(program) is None:
        raise FailedPrecondition(f"{program} is not installed")
    process = await asyncio.create_subprocess_exec(
        *("nice", "-n", "5", *command),
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        printed, _ = await process.communicate()
    finally:
        # Nobody waits for it any more: another part of the installation has failed.
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.returncode:
        last = printed.decode(errors="replace").splitlines()[-_LAST_LINES:]
        raise FailedPrecondition(f"{' '.join(command[:3])} ... failed: {' / '.join(last)}")
    return printed.decode(errors="replace")
