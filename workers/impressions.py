"""The impressions worker: showings into the long memory."""

import asyncio
import logging
from collections.abc import Sequence

from feed.v1.events_pb2 import ImpressionEvent

from mesh import telemetry
from mesh.errors import FeedError
from mesh.ids import now_ms
from stores.events.port import Record, Topic
from stores.impressions.port import Impression, ImpressionStore
from workers.consumer import Delivery, stop_if_cancelled

_log = logging.getLogger(__name__)

KEPT_MS = 48 * 3600 * 1000
_PURGE_EVERY_S = 600.0


def to_impression(record: Record, event: ImpressionEvent) -> Impression:
    """The showing that an event tells of; its repeats have the same `event_id`."""
    return Impression(
        event_id=record.event_id,
        user_id=event.user_id,
        post_id=event.post_id,
        author_id=event.author_id,
        seen_at_ms=event.seen_at_ms,
        position=event.position if event.HasField("position") else None,
        feed_id=event.feed_id,
        dwell_ms=event.dwell_ms if event.HasField("dwell_ms") else None,
    )


class Impressions:
    """Records impressions in batches, and forgets those older than 48 hours."""

    group = "impressions"
    topics = (Topic.IMPRESSIONS,)
    max_records = 500
    together = True

    def __init__(self, impressions: ImpressionStore) -> None:
        self._impressions = impressions

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        await self._impressions.record(
            [
                to_impression(delivery.record, delivery.event)
                for delivery in deliveries
                if isinstance(delivery.event, ImpressionEvent)
            ]
        )

    async def purge_forever(self) -> None:
        """Forgets old impressions every ten minutes, until cancelled."""
        while True:
            stop_if_cancelled()
            try:
                with telemetry.span("purge impressions"):
                    purged = await self._impressions.purge(now_ms() - KEPT_MS)
                    _log.info("forgot %d old impressions", purged)
            except FeedError as error:
                _log.warning("could not forget old impressions: %s", error)
            await asyncio.sleep(_PURGE_EVERY_S)
