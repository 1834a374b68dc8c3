"""A server that goes on when the command that started it has ended."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from local.embedded import port_is_taken
from mesh.errors import FailedPrecondition, Unavailable
from stack.place import Place

_log = logging.getLogger(__name__)
_POLL_S = 0.1
_KILLED_WITHIN_S = 10.0
_LAST_LINES = 5


async def runs() -> bool:
    """Of a server that is seen to serve only by what comes after it."""
    return True


@dataclass(frozen=True, slots=True)
class Server:
    """How a server is started, and how one sees that it serves.

    Args:
        name: Its name in the status table, its folder's and its log's.
        version: As its makers count.
        command: Program and arguments; it stays in the foreground.
        url: Where clients find it.
        ports: What it listens on; they must be free when it starts.
        is_healthy: Whether it serves, asked while it runs; may raise, which counts as no.
        env: What its environment has beside ours.
        settings: FEED_* variables of who uses it, beside its URL.
        after: Names of servers that must be healthy before it starts.
        prepare: What its clients need there (topics, tables, buckets), made once it is healthy; may
            be repeated.
        ready_within_s: Seconds after which a start has failed.
        stop_within_s: Seconds after which a stop is a kill.
    """

    name: str
    version: str
    command: Sequence[str]
    url: str
    ports: Sequence[int]
    is_healthy: Callable[[], Awaitable[bool]] = runs
    env: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, str] = field(default_factory=dict)
    after: Sequence[str] = ()
    prepare: Callable[[], Awaitable[None]] | None = None
    ready_within_s: float = 90.0
    stop_within_s: float = 30.0


class Daemon:
    """A server's process, found again by any later command through its pid file.

    Args:
        server: What it runs.
        place: Where its pid file and its log are.
    """

    def __init__(self, server: Server, place: Place) -> None:
        self.server = server
        self._host = place.host
        self._folder = place.data(server.name)
        self.log_file = place.log_file(server.name)

    @property
    def process(self) -> psutil.Process | None:
        """None while it does not run."""
        try:
            pid, created = self._pid_file.read_text().split()
            process = psutil.Process(int(pid))
            # The number alone may be another process's by now.
            if abs(process.create_time() - float(created)) > 1:
                return None
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except (OSError, ValueError, psutil.NoSuchProcess):
            return None

    @property
    def memory_bytes(self) -> int:
        """Resident memory of the server with its children; 0 while it does not run."""
        return 0 if self.process is None else memory_bytes(self.process)

    async def start(self) -> None:
        """Returns when it is healthy and prepared; nothing to do but prepare when it runs already.

        Raises:
            FailedPrecondition: One of its ports is taken.
            Unavailable: It does not start, or not in time; the detail has the end of its log.
        """
        if self.process is None:
            await self._spawn()
        try:
            async with asyncio.timeout(self.server.ready_within_s):
                while not await self.is_healthy():
                    if self.process is None:
                        raise Unavailable(f"{self.server.name} did not start: {self._complaints()}")
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            raise Unavailable(
                f"{self.server.name} was not ready in time: {self._complaints()}"
            ) from None
        if self.server.prepare is not None:
            await self.server.prepare()

    async def is_healthy(self) -> bool:
        """Whether it runs and serves."""
        if self.process is None:
            return False
        try:
            return await self.server.is_healthy()
        except Exception as error:
            _log.debug("%s: %r", self.server.name, error)
            return False

    async def stop(self) -> None:
        """SIGTERM, and kill when that takes too long. Without effect when it does not run."""
        await self._end(signal.SIGTERM, self.server.stop_within_s)

    async def kill(self) -> None:
        """kill -9."""
        await self._end(signal.SIGKILL, _KILLED_WITHIN_S)

    async def _end(self, number: signal.Signals, within_s: float) -> None:
        process = self.process
        if process is not None:
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
            if not await self._ended(within_s):
                _log.warning("%s did not stop within %.0f s; killed", self.server.name, within_s)
            # Whatever is left of it, its children too: it leads a group of its own.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await self._ended(_KILLED_WITHIN_S)
            await self._ports_given_back()
        self._pid_file.unlink(missing_ok=True)

    async def _ports_given_back(self) -> None:
        """A killed process is seen as dead before its last thread, which holds its sockets, is."""
        until = time.monotonic() + _KILLED_WITHIN_S
        while any(port_is_taken(self._host, port) for port in self.server.ports):
            if time.monotonic() > until:
                return
            await asyncio.sleep(_POLL_S)

    async def _ended(self, within_s: float) -> bool:
        until = time.monotonic() + within_s
        while self.process is not None:
            if time.monotonic() > until:
                return False
            await asyncio.sleep(_POLL_S)
        return True

    async def _spawn(self) -> None:
        taken = [port for port in self.server.ports if port_is_taken(self._host, port)]
        if taken:
            raise FailedPrecondition(
                f"port {', '.join(map(str, taken))} of {self._host}, for {self.server.name}, "
                "is taken; stop what listens there, or set FEED_STACK_PORT"
            )
        self._folder.mkdir(parents=True, exist_ok=True)
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        with self.log_file.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self.server.command,
                cwd=self._folder,
                env={**os.environ, **self.server.env},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        with suppress(psutil.NoSuchProcess):
            created = psutil.Process(process.pid).create_time()
            self._pid_file.write_text(f"{process.pid} {created}")

    @property
    def _pid_file(self) -> Path:
        return self._folder / "pid"

    def _complaints(self) -> str:
        lines = self.log_file.read_text(errors="replace").splitlines()
        return " / ".join([*lines[-_LAST_LINES:], f"see {self.log_file}"])


def memory_bytes(process: psutil.Process) -> int:
    """Resident memory of a process with its children; what they share counts once for each."""
    total = 0
    with suppress(psutil.Error):
        for each in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += each.memory_info().rss
    return total
