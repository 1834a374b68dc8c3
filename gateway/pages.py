"""Pages of a feed: how its posts are presented, and how it is resumed."""

import asyncio
from collections import Counter
from collections.abc import Iterable

from feed.v1 import common_pb2, hydrator_pb2

from gateway import hydration, wire
from gateway.backends import Backends
from gateway.problems import Gone
from gateway.schemas import FeedItem, FeedPage
from gateway.snapshots import Snapshot
from gateway.stages import Run
from gateway.tokens import Cursor
from mesh import metrics, telemetry


def first(
    run: Run, snapshot: Snapshot, ordered: hydrator_pb2.HydrateFeedResponse, resumable: bool
) -> FeedPage:
    """The page that the feed was made for."""
    page = _present(run, snapshot, ordered.posts, ordered.consumed if resumable else None)
    for item in page.items:
        metrics.FEED_ITEMS.labels(item.source).inc()
    return page


async def resume(run: Run, signed: str) -> FeedPage:
    """The page after the one that brought the cursor.

    What was deleted or blocked since is passed over, nothing else is, and nothing comes twice.
    """
    cursor = run.here.cursors.read(signed, run.reader_id)
    snapshot, around = await asyncio.gather(
        load(run.here, cursor.feed_id), run.here.graph.neighborhood(run.reader_id)
    )
    if snapshot is None:
        raise Gone("The feed is not kept any more; begin a new one.")
    ahead = snapshot.ahead(cursor.position, without=set(around.blocked))
    hydrated = await hydration.hydrate(
        run.here, run.reader_id, [snapshot.post_at(place) for place in ahead], run.limit
    )
    rest = ahead[hydrated.consumed :]
    return _present(run, snapshot, hydrated.posts, rest[0] if rest else None)


async def load(here: Backends, feed_id: str) -> Snapshot | None:
    """The snapshot; None when there is none, or none any more."""
    data = await here.snapshots.load(feed_id)
    return Snapshot.from_bytes(data) if data is not None else None


def _present(
    run: Run, snapshot: Snapshot, posts: Iterable[common_pb2.Post], position: int | None
) -> FeedPage:
    """The page; `position` is where the next one begins, None when there cannot be one."""
    next_cursor = None
    if position is not None and position < len(snapshot.order):
        next_cursor = run.here.cursors.sign(
            Cursor(snapshot.feed_id, position),
            run.reader_id,
            snapshot.created_at_ms + run.here.settings.feed_ttl_s * 1000,
        )
    shown = snapshot.shown()
    items = [_item(post, snapshot, shown[post.post_id]) for post in posts]
    degraded = list(dict.fromkeys([*snapshot.degraded, *run.degraded]))
    sources = Counter(item.source for item in items)
    telemetry.annotate(
        {
            "feed.id": snapshot.feed_id,
            "feed.candidates": len(snapshot.post_ids),
            "feed.length": len(snapshot.order),
            "feed.items": len(items),
            "feed.model.version": snapshot.model_version,
            "feed.degraded": degraded,
            "feed.is_degraded": bool(degraded),
            **{f"feed.items.{name}": count for name, count in sources.items()},
        }
    )
    return FeedPage(
        feed_id=snapshot.feed_id,
        items=items,
        next_cursor=next_cursor,
        degraded=degraded,
        trace_id=telemetry.trace_id(),
    )


def _item(post: common_pb2.Post, snapshot: Snapshot, index: int) -> FeedItem:
    source = snapshot.sources[index]
    return FeedItem(
        **dict(hydration.present(post)),
        source=wire.shown_source(source),
        score=snapshot.scores[index] or 0.0,
        reason=wire.reason(source, post.author.display_name or post.author.username),
    )
