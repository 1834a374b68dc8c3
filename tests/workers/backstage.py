"""The stores of one test, what the gateway would write to them, and workers on them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

from feed.v1.events_pb2 import EngagementEvent, GraphEvent, ImpressionEvent, PostEvent

from mesh.ids import now_ms
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.codec import encode, new_event_id
from stores.events.port import Event, Topic
from stores.mailboxes.port import Box
from stores.posts.port import StoredMedia, StoredPost
from tests.eventually import eventually
from tests.fixtures.sql import fresh_id
from workers.embedding import Embedding
from workers.fanout import Fanout
from workers.features import Features
from workers.impressions import Impressions
from workers.runner import run_workers

_WORKERS = (Fanout, Embedding, Features, Impressions)
PNG = StoredMedia("k.png", "image/png", 4, 3)


class Backstage:
    """Writes as the gateway does, each with its event."""

    def __init__(self, settings: Settings, stores: Connections) -> None:
        self.settings = settings
        self.stores = stores

    @asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[None]:
        """The named workers, or all, run within the block; a failure of theirs is the test's."""
        working = asyncio.create_task(run_workers(self.settings, self.stores, names))
        try:
            yield
            if working.done():
                working.result()
        finally:
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)

    async def settled(self, *groups: str, within_s: float = 10) -> None:
        """Returns when every event had its effect by the named groups, or by all."""
        workers = [worker for worker in _WORKERS if not groups or worker.group in groups]

        async def nothing_waits() -> bool:
            assert not await self.stores.outbox().pending(1)
            for worker in workers:
                for topic in worker.topics:
                    assert await self.stores.events().lag(worker.group, topic) == 0
            return True

        await eventually(nothing_waits, within_s)

    async def post(
        self,
        author_id: int,
        text: str = "",
        *,
        tags: tuple[str, ...] = (),
        media: tuple[StoredMedia, ...] = (),
    ) -> int:
        post_id = fresh_id()
        post = StoredPost(post_id, author_id, text, tags, media, datetime.now(UTC))
        await self.stores.posts().create(post, post_event(post_id, author_id))
        return post_id

    async def delete(self, post_id: int, author_id: int) -> None:
        event = post_event(post_id, author_id, PostEvent.ACTION_DELETED)
        await self.stores.posts().delete(post_id, author_id, event)

    async def follow(self, user_id: int, author_id: int) -> None:
        event = graph_event(user_id, author_id, GraphEvent.ACTION_FOLLOWED)
        await self.stores.graph().follow(user_id, author_id, 10_000, event)

    async def unfollow(self, user_id: int, author_id: int) -> None:
        event = graph_event(user_id, author_id, GraphEvent.ACTION_UNFOLLOWED)
        await self.stores.graph().unfollow(user_id, author_id, event)

    async def block(self, user_id: int, target_id: int) -> None:
        event = graph_event(user_id, target_id, GraphEvent.ACTION_BLOCKED)
        await self.stores.graph().block(user_id, target_id, event)

    async def like(self, user_id: int, post_id: int) -> None:
        event = engagement_event(user_id, post_id, EngagementEvent.ACTION_LIKED)
        await self.stores.posts().like(user_id, post_id, datetime.now(UTC), event)

    async def unlike(self, user_id: int, post_id: int) -> None:
        event = engagement_event(user_id, post_id, EngagementEvent.ACTION_UNLIKED)
        await self.stores.posts().unlike(user_id, post_id, event)

    async def show(
        self, user_id: int, post_ids: Sequence[int], dwell_ms: int | None = None
    ) -> None:
        events = [
            Event(
                Topic.IMPRESSIONS,
                user_id,
                ImpressionEvent(
                    user_id=user_id, post_id=post_id, seen_at_ms=now_ms(), dwell_ms=dwell_ms
                ),
            )
            for post_id in post_ids
        ]
        await self.publish(*events)

    async def publish(self, *events: Event) -> None:
        await self.stores.events().publish([encode(event, new_event_id()) for event in events])

    async def open_mailboxes(self, *reader_ids: int) -> None:
        """As if the readers had each read a feed, which was empty."""
        store = self.stores.mailboxes()
        for reader_id in reader_ids:
            await store.finish_build(Box("mailbox", reader_id), [])

    async def mailbox(self, reader_id: int) -> list[int] | None:
        [box] = await self.stores.mailboxes().newest([Box("mailbox", reader_id)], 800)
        return box

    async def authored(self, author_id: int) -> list[int] | None:
        [box] = await self.stores.mailboxes().newest([Box("authored", author_id)], 800)
        return box


def post_event(
    post_id: int, author_id: int, action: PostEvent.Action.ValueType = PostEvent.ACTION_CREATED
) -> Event:
    message = PostEvent(
        action=action, post_id=post_id, author_id=author_id, occurred_at_ms=now_ms()
    )
    return Event(Topic.POSTS, author_id, message)


def graph_event(user_id: int, target_id: int, action: GraphEvent.Action.ValueType) -> Event:
    message = GraphEvent(
        action=action, user_id=user_id, target_id=target_id, occurred_at_ms=now_ms()
    )
    return Event(Topic.GRAPH, user_id, message)


def engagement_event(user_id: int, post_id: int, action: EngagementEvent.Action.ValueType) -> Event:
    message = EngagementEvent(
        action=action, user_id=user_id, post_id=post_id, occurred_at_ms=now_ms()
    )
    return Event(Topic.ENGAGEMENTS, user_id, message)
