"""What is kept for some time only, and forgotten by us where the store does not do it itself."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

from mesh import telemetry
from mesh.errors import FeedError
from workers.consumer import stop_if_cancelled

_log = logging.getLogger(__name__)

_EVERY_S = 600.0


async def forget_forever(
    what: str, kept: timedelta, forget: Callable[[datetime], Awaitable[int]]
) -> None:
    """Forgets what is older than `kept`, every ten minutes, until cancelled.

    Args:
        what: For the log and the span, such as "impressions".
        kept: How long it is kept at least.
        forget: Forgets what is older than a time, and gives how many.
    """
    while True:
        stop_if_cancelled()
        try:
            with telemetry.span(f"purge {what}"):
                forgotten = await forget(datetime.now(UTC) - kept)
            _log.info("forgot %d old %s", forgotten, what)
        except FeedError as error:
            _log.warning("could not forget old %s: %s", what, error)
        await asyncio.sleep(_EVERY_S)
