"""The impressions worker: showings into the long memory."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from feed.v1.events_pb2 import ImpressionEvent

from stores.events.port import Record, Topic
from stores.impressions.port import Impression, ImpressionStore
from workers.consumer import Delivery
from workers.housekeeping import forget_forever

KEPT = timedelta(hours=48)


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
        """Forgets old impressions, until cancelled."""

        async def purge(before: datetime) -> int:
            return await self._impressions.purge(int(before.timestamp() * 1000))

        await forget_forever("impressions", KEPT, purge)
