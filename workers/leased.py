"""The loop of a worker of which one works at a time: whoever holds a lease."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from uuid import uuid4

from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced

from mesh.errors import FeedError
from stores.leases.port import Leases
from workers.consumer import Pause, backoff_s, stop_if_cancelled

_log = logging.getLogger(__name__)

_IDLE_S = 0.05
_LONG_IDLE_S = 0.2


class LeasedLoop:
    """Takes one step after another while it holds the lease.

    Args:
        name: The lease's, and for log lines.
        leases: Decides between processes.
        lease_s: Seconds for which the lease is taken; after a crash, what another process waits.
        step: Does some work and returns how much. Its failures are logged, and it is tried again
            after a pause.
        at_once: As much as a step does; more waits, then, and the next step comes at once.
        others_turn: Called now and again while another process holds the lease.
    """

    def __init__(
        self,
        name: str,
        leases: Leases,
        lease_s: float,
        step: Callable[[], Awaitable[int]],
        at_once: int,
        others_turn: Callable[[], object],
    ) -> None:
        self._name = name
        self._leases = leases
        self._lease_s = lease_s
        self._step = step
        self._at_once = at_once
        self._others_turn = others_turn
        self._holder = uuid4().hex
        self._pause = Pause(name)
        # By the loop's clock.
        self.held_until = 0.0

    async def run(self) -> None:
        """Runs until cancelled."""
        try:
            await self._work_forever()
        finally:
            # The next one need not wait for the lease to expire.
            with suppress(FeedError), untraced():
                await asyncio.shield(self._leases.release(self._name, self._holder))

    async def _work_forever(self) -> None:
        attempt, idle_s = 0, _IDLE_S
        while True:
            stop_if_cancelled()
            try:
                if not await self._holds_lease():
                    self._others_turn()
                    await asyncio.sleep(self._lease_s / 3)
                    continue
                done = await self._step()
            except Exception as error:
                # Also what nobody foresaw: if it stopped, so would everything behind it.
                self._pause.begin(error)
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1
                continue
            self._pause.end()
            attempt = 0
            idle_s = _IDLE_S if done else min(idle_s * 1.2, _LONG_IDLE_S)
            if done < self._at_once:
                await asyncio.sleep(idle_s)

    async def _holds_lease(self) -> bool:
        """Renews the lease when a third of it has passed."""
        now = asyncio.get_running_loop().time()
        if now < self.held_until - self._lease_s * 2 / 3:
            return True
        held_before = now < self.held_until
        with untraced():
            held = await self._leases.acquire(self._name, self._holder, self._lease_s)
        # Counted from before the call: the store's clock for it can only have started later.
        self.held_until = now + self._lease_s if held else 0.0
        if held != held_before:
            _log.info("%s %s the lease", self._name, "has" if held else "lost")
        return held
