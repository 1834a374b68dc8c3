"""The relay: carries events from the outbox to the event log, in order, at least once."""

import asyncio
from datetime import timedelta

from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced

from mesh import metrics
from mesh.errors import Unavailable
from stores.events.port import EventLog
from stores.leases.port import Leases
from stores.outbox.port import Outbox, OutboxRow
from workers.leased import LeasedLoop

LEASE = "relay"
# How long a key of `POST /post` is good for, at least.
KEYS_KEPT = timedelta(days=1)
_ROWS = 100


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
        # What this relay last saw is old news while another tells.
        self._loop = LeasedLoop(
            LEASE, leases, lease_s, self._move, _ROWS, lambda: metrics.OUTBOX_PENDING.set(0)
        )

    async def run(self) -> None:
        """Runs until cancelled."""
        await self._loop.run()

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
            async with asyncio.timeout_at(self._loop.held_until):
                await self._events.publish([row.record for row in rows])
        except TimeoutError:
            raise Unavailable("the event log did not answer while the lease was held") from None
