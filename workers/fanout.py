"""The fan-out worker: posts into mailboxes, and mailboxes in step with who follows whom."""

import logging
from collections.abc import AsyncIterator, Sequence

from feed.v1.events_pb2 import GraphEvent, PostEvent

from mesh import metrics, telemetry
from stores.events.port import Topic
from stores.graph.port import GraphStore
from stores.mailboxes.port import CAPACITY, Box, MailboxStore, Progress
from stores.mailboxes.timelines import Timelines
from stores.posts.port import PostStore
from workers.consumer import Delivery, stop_if_cancelled

_log = logging.getLogger(__name__)

_PAGE = 1_000
_BACKFILL = 100


class Fanout:
    """Pushes posts to the mailboxes of their authors' followers; takes out what went.

    Reads are right without it: they filter by the present state. It makes them fast, and full.

    Args:
        posts: The source of truth of posts.
        graph: Who follows, and whose posts are pulled.
        mailboxes: Where posts go.
        push_limit: Followers above which an author's posts are pulled at read instead.
        page: Followers per write.
    """

    group = "fanout"
    topics = (Topic.POSTS, Topic.GRAPH)
    # One author's long fan-out does not hold up the others' posts.
    max_records = 16
    together = False

    def __init__(
        self,
        posts: PostStore,
        graph: GraphStore,
        mailboxes: MailboxStore,
        push_limit: int,
        page: int = _PAGE,
    ) -> None:
        self._posts = posts
        self._graph = graph
        self._mailboxes = mailboxes
        self._timelines = Timelines(mailboxes, posts)
        self._push_limit = push_limit
        self._page = page

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            match delivery.event:
                case PostEvent() as event:
                    await self._follow_post(event.post_id, event.author_id)
                case GraphEvent() as event:
                    await self._follow_graph(event)

    async def _follow_post(self, post_id: int, author_id: int) -> None:
        if await self._exists(post_id):
            await self._push(post_id, author_id)
            # Deleted meanwhile, and that event perhaps handled already by another process.
            if await self._exists(post_id):
                return
        await self._remove(post_id, author_id)

    async def _exists(self, post_id: int) -> bool:
        return post_id in await self._posts.authors([post_id])

    async def _push(self, post_id: int, author_id: int) -> None:
        # First of all: whoever begins to follow from now on is backfilled from this box.
        await self._mailboxes.push([Box("authored", author_id)], [post_id])
        if await self._is_pulled(author_id):
            telemetry.annotate({"feed.fanout.mode": "pull"})
            metrics.post_visible("pulled", post_id)
            return
        task = f"fanout:{post_id}"
        done = await self._mailboxes.progress(task)
        reached = 0
        async for page in self._followers(author_id, after=done.after if done else 0):
            boxes = [Box("mailbox", follower) for follower in page]
            reached += await self._mailboxes.push(boxes, [post_id])
            await self._mailboxes.save_progress(task, Progress(after=page[-1]))
        await self._mailboxes.save_progress(task, None)
        metrics.FANOUT_MAILBOXES.inc(reached)
        metrics.post_visible("mailbox", post_id)
        telemetry.annotate({"feed.fanout.mode": "push", "feed.fanout.mailboxes": reached})

    async def _is_pulled(self, author_id: int) -> bool:
        if await self._graph.is_pulled(author_id):
            return True
        followers = (await self._graph.follower_counts([author_id]))[author_id]
        if followers <= self._push_limit:
            return False
        # Before the first post that is not pushed, so that no reader misses it.
        await self._graph.mark_pulled(author_id)
        _log.info("author %d has %d followers: pulled from now on", author_id, followers)
        return True

    async def _remove(self, post_id: int, author_id: int) -> None:
        telemetry.annotate({"feed.fanout.mode": "remove"})
        await self._mailboxes.remove([Box("authored", author_id)], [post_id])
        await self._mailboxes.save_progress(f"fanout:{post_id}", None)
        # A pulled author's posts are in few mailboxes, too few to visit a million for.
        if await self._graph.is_pulled(author_id):
            return
        async for page in self._followers(author_id):
            await self._mailboxes.remove([Box("mailbox", reader) for reader in page], [post_id])

    async def _followers(self, author_id: int, after: int = 0) -> AsyncIterator[list[int]]:
        while page := await self._graph.followers_page(author_id, after, self._page):
            stop_if_cancelled()
            yield page
            after = page[-1]

    async def _follow_graph(self, event: GraphEvent) -> None:
        if event.action == GraphEvent.ACTION_UNBLOCKED:
            return
        await self._align(event.user_id, event.target_id)
        if event.action == GraphEvent.ACTION_BLOCKED:
            await self._align(event.target_id, event.user_id)

    async def _align(self, reader_id: int, author_id: int) -> None:
        """Puts the author's recent posts into the reader's mailbox, or takes them out."""
        mailbox = Box("mailbox", reader_id)
        relation = await self._graph.relation(reader_id, author_id)
        if not relation.following:
            newest = await self._posts.newest_ids([author_id], CAPACITY)
            await self._mailboxes.remove([mailbox], newest[author_id])
        elif not await self._graph.is_pulled(author_id):
            recent = await self._timelines.recent_by_authors([author_id], _BACKFILL)
            await self._mailboxes.push([mailbox], recent[author_id])
