"""A worker id of one's own, for snowflakes.

A lease alone cannot keep two processes from using one worker id at the same time of the clock: a
clock that stepped back shows times again in which an earlier holder made ids. So the lease's time
is a fence for the times *in the ids*:

- A holder makes no id of the time at which its lease ends, or of a later one.
- A worker id is free only when the clock is past the end of its last lease, and whoever then takes
  it makes no id of an earlier time than that moment.

The ids of two holders are of disjoint times, then, whatever their clocks did before, after or
between, and however far apart they are. That is also why a lease is never given back (its row is
the fence; it ends by itself within a minute) and never renewed to an earlier end than it has. One
gap is left: a step back within the very milliseconds of a renewal shortens the lease to below the
times that its holder made ids of.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self
from uuid import uuid4

from opentelemetry.instrumentation.utils import suppress_instrumentation

from mesh.errors import FeedError, Unavailable
from mesh.ids import WORKERS, Snowflakes, now_ms

_log = logging.getLogger(__name__)

TTL_S = 60.0


class Leases(Protocol):
    """What is needed of `stores.leases`."""

    async def acquire(
        self, name: str, holder: str, ttl_s: float, now_ms: int | None = None
    ) -> bool:
        """Takes or renews the lease for `ttl_s` seconds; False while another holds it."""
        ...


class WorkerIdLease:
    """Holds a worker id while the process runs: `async with WorkerIdLease(leases) as lease`.

    Entering raises `Unavailable` when the leases are away or every worker id is held.

    Attributes:
        snowflakes: Makes ids as long as the lease could be renewed; afterwards its `next` raises
            `Unavailable`, until a lease, be it of another worker id, is had again.

    Args:
        leases: Where worker ids are leased.
        ttl_s: Seconds a lease lasts. It is renewed when a third has passed.
        clock_ms: Milliseconds since the Unix epoch; also the time that `leases` are asked with.
    """

    snowflakes: Snowflakes

    def __init__(
        self, leases: Leases, ttl_s: float = TTL_S, clock_ms: Callable[[], int] = now_ms
    ) -> None:
        self._leases = leases
        self._ttl_s = ttl_s
        self._clock_ms = clock_ms
        # Nobody else has ever had this name, so nobody's lease is mistaken for one's own.
        self._holder = uuid4().hex
        self._until_ms = 0
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        worker_id, since_ms = await self._take()
        self.snowflakes = Snowflakes(
            worker_id, self._clock_ms, from_ms=since_ms, until_ms=self._until_ms
        )
        self._worker_id = worker_id
        self._keeper = asyncio.create_task(self._keep(), name="worker-id")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def renew_if_due(self) -> None:
        """Renews the lease when a third of it has passed; takes another worker id if it is lost.

        Called every second in the background. Raises `Unavailable` as entering does.
        """
        if self._clock_ms() < self._until_ms - self._ttl_s * 1000 * 2 / 3:
            return
        since_ms = await self._acquire(self._worker_id)
        if since_ms is None:
            _log.warning("worker id %d went to another process", self._worker_id)
            self._worker_id, since_ms = await self._take()
        self.snowflakes.allow(self._worker_id, since_ms, self._until_ms)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            try:
                await self.renew_if_due()
            except FeedError as error:
                _log.warning("worker id %d is not renewed: %s", self._worker_id, error)
            except Exception:
                _log.exception("worker id %d is not renewed", self._worker_id)

    async def _take(self) -> tuple[int, int]:
        """A free worker id, and the time from which it may be used."""
        # Processes that start together begin at different places.
        start = random.randrange(WORKERS)
        for offset in range(WORKERS):
            worker_id = (start + offset) % WORKERS
            since_ms = await self._acquire(worker_id)
            if since_ms is not None:
                return worker_id, since_ms
        raise Unavailable("Every worker id is held by another process.", retry_after_s=self._ttl_s)

    async def _acquire(self, worker_id: int) -> int | None:
        """The time from which the worker id may be used, or None when it may not."""
        before_ms = self._clock_ms()
        # Nobody's request: a trace of its own, every 20 seconds, would bury those that are.
        with suppress_instrumentation():
            held = await self._leases.acquire(
                f"snowflake:{worker_id}", self._holder, self._ttl_s, before_ms
            )
        after_ms = self._clock_ms()
        # The lease was given at some time between the two; it ends no earlier than the first says,
        # and it was free no later than the second says. Not so when the clock stepped meanwhile.
        if not held or after_ms < before_ms:
            return None
        self._until_ms = before_ms + int(self._ttl_s * 1000)
        return after_ms
