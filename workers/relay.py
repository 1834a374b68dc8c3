"""The relay: carries events from the outbox to the event log, in order, at least once."""

import asyncio
import logging
from contextlib import suppress
from datetime import timedelta
from uuid import uuid4

from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced

from mesh import metrics
from mesh.errors import FeedError, Unavailable
from stores.events.port import EventLog
from stores.leases.port import Leases
from stores.outbox.port import Outbox, OutboxRow
from workers.consumer import Pause, backoff_s, stop_if_cancelled

_log = logging.getLogger(__name__)

LEASE = "relay"
# How long a key of `POST /post` is good for, at least.
KEYS_KEPT = timedelta(days=1)
_ROWS = 100
_IDLE_S = 0.05
_LONG_IDLE_S = 0.2


class Relay:
    """Publishes the outbox's rows while it holds the lease, so that one relay does it at a time.

    A row is removed once the event log has acknowledged it. After a crash in between, its event is
    published again, with the same `event_id`.

    Args:
        outbox: Where events wait.
        events: Where they go.
        leases: Decides between relays.
        lease_s: Seconds for which the lease is taken; after a crash, what another relay waits.
    """

    def __init__(
        self, outbox: Outbox, events: EventLog, leases: Leases, lease_s: float = 5.0
    ) -> None:
        self._outbox = outbox
        self._events = events
        self._leases = leases
        self._lease_s = lease_s
        self._holder = uuid4().hex
        self._held_until = 0.0
        self._pause = Pause("relay")

    async def run(self) -> None:
        """Runs until cancelled."""
        try:
            await self._relay_forever()
        finally:
            # The next relay need not wait for the lease to expire.
            with suppress(FeedError), untraced():
                await asyncio.shield(self._leases.release(LEASE, self._holder))

    async def _relay_forever(self) -> None:
        attempt, idle_s = 0, _IDLE_S
        while True:
            stop_if_cancelled()
            try:
                if not await self._holds_lease():
                    # What this relay last saw is old news; the one with the lease tells.
                    metrics.OUTBOX_PENDING.set(0)
                    await asyncio.sleep(self._lease_s / 3)
                    continue
                moved = await self._move()
            except Exception as error:
                # Also what nobody foresaw: a relay that stops would stop everything behind it.
                self._pause.begin(error)
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1
                continue
            self._pause.end()
            attempt = 0
            idle_s = _IDLE_S if moved else min(idle_s * 1.2, _LONG_IDLE_S)
            if moved < _ROWS:
                await asyncio.sleep(idle_s)

    async def _holds_lease(self) -> bool:
        """Renews the lease when a third of it has passed."""
        now = asyncio.get_running_loop().time()
        if now < self._held_until - self._lease_s * 2 / 3:
            return True
        held_before = now < self._held_until
        with untraced():
            held = await self._leases.acquire(LEASE, self._holder, self._lease_s)
        # Counted from before the call: the store's clock for it can only have started later.
        self._held_until = now + self._lease_s if held else 0.0
        if held != held_before:
            _log.info("relay %s the lease", "has" if held else "lost")
        return held

    async def _move(self) -> int:
        """Publishes the oldest rows; returns how many."""
        # Polling is no work of anybody's: its spans would bury those that are.
        with untraced():
            rows = await self._outbox.pending(_ROWS)
        metrics.OUTBOX_PENDING.set(len(rows))
        if rows:
            await self._publish(rows)
            metrics.OUTBOX_PUBLISHED.inc(len(rows))
            with untraced():
                await self._outbox.published([row.row_id for row in rows])
        return len(rows)

    async def _publish(self, rows: list[OutboxRow]) -> None:
        """Raises `Unavailable` when the lease ends before the event log has answered."""
        try:
            async with asyncio.timeout_at(self._held_until):
                await self._events.publish([row.record for row in rows])
        except TimeoutError:
            raise Unavailable("the event log did not answer while the lease was held") from None
