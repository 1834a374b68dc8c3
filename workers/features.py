"""The feature worker: what the ranker and discovery know of posts, authors and readers."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta

from feed.v1.events_pb2 import EngagementEvent, GraphEvent, ImpressionEvent

from mesh.ids import now_ms
from mesh.packing import Vector
from stores.events.port import Topic
from stores.features.port import FeatureStore
from stores.graph.port import GraphStore
from stores.impressions.port import Impression, ImpressionStore
from stores.posts.port import PostStore, StoredPost
from stores.vectors.port import VectorStore
from workers.consumer import AWAY, Delivery
from workers.impressions import KEPT, to_impression
from workers.popularity import engagement_rate, hotness
from workers.taste import taste

_log = logging.getLogger(__name__)

LONG_DWELL_MS = 3_000
_LIKES = 200
_DWELLS = 200
_AUTHOR_POSTS = 20
# Readers and authors of one batch that are worked on at once.
_CONCURRENCY = 8


class Features:
    """Keeps features in step with engagements, the graph and impressions.

    Everything written is computed from the present state, so that repeats and the order of events
    do not matter. Two things wait for the next engagement, because looking for them at every event
    would cost more than they are worth: a liked post that was not embedded yet has no part in its
    reader's interest vector until that reader's next, and viewers have none in their author's
    engagement rate until the next like of that author.

    Args:
        posts: Likes and posts.
        graph: Followers.
        impressions: What readers looked at for long.
        features: What is written.
        vectors: Embeddings that the feature store does not have.
        half_life: Of an engagement's weight in the taste.
        proven_viewers: Viewers at which a post leaves the unproven.
    """

    group = "features"
    topics = (Topic.ENGAGEMENTS, Topic.GRAPH, Topic.IMPRESSIONS)
    max_records = 200
    together = True

    def __init__(
        self,
        posts: PostStore,
        graph: GraphStore,
        impressions: ImpressionStore,
        features: FeatureStore,
        vectors: VectorStore,
        *,
        half_life: timedelta,
        proven_viewers: int,
    ) -> None:
        self._posts = posts
        self._graph = graph
        self._impressions = impressions
        self._features = features
        self._vectors = vectors
        self._half_life = half_life
        self._proven_viewers = proven_viewers

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Takes deliveries of one topic."""
        engagements = [d.event for d in deliveries if isinstance(d.event, EngagementEvent)]
        if engagements:
            await self._follow_engagements(engagements)
        follows = [d.event for d in deliveries if isinstance(d.event, GraphEvent)]
        if follows:
            await self._follow_graph(follows)
        showings = [
            to_impression(d.record, d.event)
            for d in deliveries
            if isinstance(d.event, ImpressionEvent)
        ]
        if showings:
            await self._follow_impressions(showings)

    async def _follow_engagements(self, events: Sequence[EngagementEvent]) -> None:
        post_ids = list({event.post_id for event in events})
        posts = list((await self._posts.get(post_ids)).values())
        await self.count_likes(posts)
        await _for_each({post.author_id for post in posts}, self.rate_author)
        await _for_each({event.user_id for event in events}, self.learn_taste)

    async def count_likes(self, posts: Sequence[StoredPost]) -> None:
        """Writes the posts' like counts, as SQL has them, and their places among the popular."""
        if not posts:
            return
        await self._features.put_like_counts({post.post_id: post.like_count for post in posts})
        await self._features.put_popular(
            {post.post_id: hotness(post.like_count, post.created_at) for post in posts}
        )
        # Deleted since they were read: they must not stay among the popular.
        exist = await self._posts.authors([post.post_id for post in posts])
        for post in posts:
            if post.post_id not in exist:
                await self._features.delete_post(post.post_id)

    async def rate_author(self, author_id: int) -> None:
        """Writes how engaging the author's newest posts are: smoothed likes per unique viewer."""
        posts = await self._posts.by_author(author_id, None, _AUTHOR_POSTS)
        known = await self._features.posts([post.post_id for post in posts])
        rate = engagement_rate(
            sum(post.like_count for post in posts),
            sum(features.viewer_count for features in known if features),
        )
        await self._features.put_user_stats(author_id, avg_engagement_rate=rate)

    async def learn_taste(self, user_id: int, just_seen: Sequence[Impression] = ()) -> None:
        """Writes the user's interest vector and affinities, from what they liked and dwelt on."""
        likes = await self._posts.recent_likes(user_id, _LIKES)
        since_ms = now_ms() - int(KEPT.total_seconds() * 1000)
        dwells = await self._impressions.dwelt(user_id, LONG_DWELL_MS, since_ms, _DWELLS)
        # What is being handled now may not have reached the long memory yet.
        dwells = list({each.event_id: each for each in (*dwells, *just_seen)}.values())
        liked, dwelt = {like.post_id for like in likes}, {dwell.post_id for dwell in dwells}
        embeddings = await self._embeddings(liked | dwelt)
        interest, affinities = taste(likes, dwells, embeddings, datetime.now(UTC), self._half_life)
        await self._features.put_taste(user_id, interest, affinities)

    async def _embeddings(self, post_ids: set[int]) -> dict[int, Vector]:
        """Of the posts that have one."""
        ids = sorted(post_ids)
        known = await self._features.posts(ids)
        found = {
            post_id: features.embedding
            for post_id, features in zip(ids, known, strict=True)
            if features is not None and features.embedding is not None
        }
        missing = [post_id for post_id in ids if post_id not in found]
        if missing:
            try:
                found |= await self._vectors.retrieve(missing)
            except AWAY as error:
                # Few are missing, if any: not worth holding up everybody's likes for.
                _log.warning("a taste goes without %d embeddings: %s", len(missing), error)
        return found

    async def _follow_graph(self, events: Sequence[GraphEvent]) -> None:
        users = {user for event in events for user in (event.user_id, event.target_id)}
        counts = await self._graph.follower_counts(list(users))

        async def put(user_id: int) -> None:
            await self._features.put_user_stats(user_id, follower_count=counts[user_id])

        await _for_each(users, put)

    async def _follow_impressions(self, showings: Sequence[Impression]) -> None:
        await self._features.add_viewers([(each.post_id, each.user_id) for each in showings])
        post_ids = list({each.post_id for each in showings})
        known = await self._features.posts(post_ids)
        proven = [
            post_id
            for post_id, features in zip(post_ids, known, strict=True)
            if features is not None and features.viewer_count >= self._proven_viewers
        ]
        if proven:
            await self._features.drop_unproven(proven)
        long = [each for each in showings if (each.dwell_ms or 0) >= LONG_DWELL_MS]

        async def learn(user_id: int) -> None:
            await self.learn_taste(user_id, [each for each in long if each.user_id == user_id])

        await _for_each({each.user_id for each in long}, learn)


async def _for_each(ids: Iterable[int], act: Callable[[int], Awaitable[None]]) -> None:
    """Acts on each id, some at once; raises the first failure as it is."""
    free = asyncio.Semaphore(_CONCURRENCY)

    async def one(each: int) -> None:
        async with free:
            await act(each)

    await asyncio.gather(*(one(each) for each in ids))
