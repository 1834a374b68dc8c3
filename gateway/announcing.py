"""Events that no change of the source of truth comes with: straight into the event log."""

import asyncio
import logging
from collections.abc import Sequence

from gateway.backends import Backends
from mesh import deadlines
from mesh.errors import Unavailable
from stores.events.port import OutgoingRecord

_log = logging.getLogger(__name__)
# Seconds after which the event log is taken to be away.
_TIMEOUT_S = 5.0


async def announce(here: Backends, records: Sequence[OutgoingRecord]) -> None:
    """Into the event log; or into the outbox, so that nothing acknowledged is lost.

    The outbox has half of what is left of the request's deadline. Where the log took the records
    and its answer was lost, they come twice, with the same ids.

    Raises `Unavailable` when both are away.
    """
    try:
        async with asyncio.timeout(deadlines.remaining(2 * _TIMEOUT_S) / 2):
            await here.events.publish(records)
    except (Unavailable, TimeoutError) as error:
        reason = str(error) or "no answer in time"
        _log.warning("%s goes by the outbox: %s", records[0].topic, reason)
        await here.outbox.add(records)
