"""Child processes that are kept running, and that never outlive their parent."""

import asyncio
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence

_log = logging.getLogger(__name__)
_RESTART_AFTER_S = (0.2, 0.5, 1.0, 2.0, 5.0)
# A child that ran this long was healthy: the next failure is a new one.
_HEALTHY_AFTER_S = 30.0


async def end(process: asyncio.subprocess.Process | None, name: str, grace_s: float) -> None:
    """Asks the process to stop, and kills it when that takes longer; nothing if it has ended.

    Args:
        process: None where it was never started.
        name: For the log line.
        grace_s: Seconds it may take to stop.
    """
    if process is None or process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(grace_s):
            await process.wait()
    except TimeoutError:
        _log.warning("%s did not stop within %.0f s; killed", name, grace_s)
        process.kill()
        await process.wait()


class Child:
    """`python -m module args...`, started again whenever it dies, until it is stopped.

    The child gets a pipe as standard input and stops at its end, so that it goes with its parent
    also when that is killed with -9 (`mesh.lifecycle.until_stopped`).

    Args:
        name: For log lines.
        command: The module and its arguments.
        grace_s: Seconds it may take to stop before it is killed.
        env: What it gets beside the launcher's own environment.
    """

    def __init__(
        self, name: str, command: Sequence[str], grace_s: float, env: Mapping[str, str]
    ) -> None:
        self._name = name
        self._command = command
        self._grace_s = grace_s
        self._env = env
        self._process: asyncio.subprocess.Process | None = None
        self._keeper: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The process as it runs now."""
        return self._process.pid if self._process is not None else None

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._process.returncode if self._process is not None else None

    async def start(self) -> None:
        """Starts it and keeps it running."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep(), name=f"keep {self._name}")

    async def stop(self) -> None:
        """Asks it to stop, and kills it when that takes too long."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        await end(self._process, self._name, self._grace_s)

    async def _spawn(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            *self._command,
            stdin=asyncio.subprocess.PIPE,
            env={**os.environ, **self._env, "FEED_CHILD": "1"},
            # Ctrl-C is the launcher's to handle; it then stops its children in order.
            start_new_session=True,
        )

    async def _keep(self) -> None:
        failures = 0
        while True:
            assert self._process is not None  # noqa: S101  start() has spawned it
            started = time.monotonic()
            code = await self._process.wait()
            failures = 0 if time.monotonic() - started > _HEALTHY_AFTER_S else failures
            pause_s = _RESTART_AFTER_S[min(failures, len(_RESTART_AFTER_S) - 1)]
            _log.error("%s ended with %s; starting it again", self._name, code)
            await asyncio.sleep(pause_s)
            failures += 1
            await self._spawn()
