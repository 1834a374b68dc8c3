"""Carries what changed in the feature cache on to Feast, as whole rows."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced
from redis.asyncio import Redis

from mesh import metrics, telemetry
from mesh.packing import Vector
from stores.features.changes import Change, FeatureChanges, Kind
from stores.features.feast_client import (
    AFFINITY,
    NO_AUTHOR,
    POST_STATS,
    USER_STATS,
    FeastClient,
    Refused,
)
from stores.features.port import PostFeatures
from stores.features.recorded import RecordedFeatureStore

# Rows with vectors are some 5 kB.
_ROWS = 500
_CHANGES = 100

Row = Mapping[str, Any]


class FeastPusher:
    """`stores.features.port.FeaturePusher` into Feast.

    A row is what the cache has when it is pushed, stamped with a time from before it was read, by
    the clock of the cache's server: of two pushes, Feast keeps what was read later.

    Args:
        client: Of the cache.
        feast: The feature server.
    """

    def __init__(self, client: Redis, feast: FeastClient) -> None:
        self._cache = RecordedFeatureStore(client)
        self._changes = FeatureChanges(client)
        self._feast = feast
        self._at_once = _CHANGES

    async def push(self) -> int:
        # Polling is no work of anybody's: its spans would bury those that are.
        with untraced():
            at, changes = await self._changes.oldest(self._at_once)
        if not changes:
            metrics.FEATURES_UNPUSHED.set(0)
            return 0
        with telemetry.span("push features", attributes={"feed.features.pushed": len(changes)}):
            try:
                await self._push(at, changes)
            except Refused:
                await self._sidestep(changes)
                raise
            left = await self._changes.done(changes)
        metrics.FEATURES_UNPUSHED.set(left)
        metrics.FEATURES_PUSHED.labels("ok").inc(len(changes))
        self._at_once = min(self._at_once * 2, _CHANGES)
        return len(changes)

    async def push_again(self) -> int:
        return await self._changes.mark_all()

    async def _sidestep(self, changes: Sequence[Change]) -> None:
        """Goes on so that one row that Feast never takes holds up no other."""
        if len(changes) > 1:
            self._at_once = len(changes) // 2
            return
        [change] = changes
        metrics.FEATURES_PUSHED.labels("refused").inc()
        await self._changes.mark(change.kind, [change.entity_id])

    async def _push(self, at: datetime, changes: Sequence[Change]) -> None:
        by_kind: dict[Kind, list[int]] = defaultdict(list)
        for change in changes:
            by_kind[change.kind].append(change.entity_id)
        await self._push_rows(at, USER_STATS, [await self._user(u) for u in by_kind[Kind.USER]])
        posts = by_kind[Kind.POST]
        known = await self._cache.posts(posts)
        await self._push_rows(
            at, POST_STATS, [_post(*each) for each in zip(posts, known, strict=True)]
        )
        for user_id in by_kind[Kind.AFFINITIES]:
            await self._push_affinities(at, user_id)

    async def _user(self, user_id: int) -> Row:
        user = await self._cache.user(user_id)
        return {
            "user_id": user_id,
            "follower_count": user.follower_count,
            "avg_engagement_rate": user.avg_engagement_rate,
            "interest_vector_json": vector_json(user.interest_vector),
        }

    async def _push_affinities(self, at: datetime, user_id: int) -> None:
        """All pairs of the user, also those that are no more: Feast forgets none by itself."""
        scores = await self._cache.all_affinities(user_id)
        gone = sorted(await self._changes.pushed_authors(user_id) - set(scores))
        await self._changes.add_pushed_authors(user_id, list(scores))
        rows = [
            {
                "user_id": user_id,
                "author_id": author_id,
                "affinity_score": scores.get(author_id, 0.0),
            }
            for author_id in (*scores, *gone)
        ]
        await self._push_rows(at, AFFINITY, rows)
        await self._changes.drop_pushed_authors(user_id, gone)

    async def _push_rows(self, at: datetime, view: str, rows: Sequence[Row]) -> None:
        for some in _chunks(rows, _ROWS):
            columns = {name: [row[name] for row in some] for name in some[0]}
            await self._feast.push(
                view, {**columns, "event_timestamp": [at.isoformat()] * len(some)}
            )


def _post(post_id: int, post: PostFeatures | None) -> Row:
    """Of a post that is no more, the author is 0.

    No null: pandas, with which Feast reads a push, makes floats of a column of integers where one
    is null, and so other ids of all. And a push of nothing but nulls is passed over, with a 200.
    """
    return {
        "post_id": post_id,
        "like_count": 0 if post is None else post.like_count,
        "has_media": False if post is None else post.has_media,
        "author_id": NO_AUTHOR if post is None else post.author_id,
        "embedding_json": None if post is None else vector_json(post.embedding),
        "topic": "" if post is None else post.topic,
    }


def vector_json(vector: Vector | None) -> str | None:
    """A JSON array with as few digits as give back the same float32 numbers."""
    return None if vector is None else f"[{','.join(vector.astype(str))}]"


def _chunks(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
