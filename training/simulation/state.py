"""What the mesh's stores would have: changed by what readers do, by the workers' own rules."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import numpy as np
from numpy.typing import NDArray

from mesh.ids import created_ms
from mesh.packing import Vector
from stores.features.port import PostFeatures, UserFeatures
from stores.impressions.port import Impression, Seen
from stores.posts.port import Engagement
from training.simulation.world import TOPICS, World
from workers.features import LONG_DWELL_MS
from workers.impressions import KEPT
from workers.popularity import engagement_rate, hotness
from workers.taste import taste

_KEPT_MS = int(KEPT.total_seconds() * 1000)
# As workers.features has them.
_LIKES = 200
_DWELLS = 200
_AUTHOR_POSTS = 20


@dataclass(slots=True)
class Changes:
    """Whose stored features changed: numbers of users and posts."""

    users: set[int] = field(default_factory=set)
    posts: set[int] = field(default_factory=set)
    affinities: set[int] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Showing:
    """What came of one visit, in the order of the feed.

    Args:
        reader: Number of the user.
        feed_id: Which feed.
        posts: Numbers.
        seen_ms: When each was seen.
        dwell_ms: For how long; None where the client does not tell.
        liked_ms: When each was liked; None where it was not.
    """

    reader: int
    feed_id: str
    posts: Sequence[int]
    seen_ms: Sequence[int]
    dwell_ms: Sequence[int | None]
    liked_ms: Sequence[int | None]


@dataclass(frozen=True, slots=True)
class Rules:
    """Settings of an installation that the state depends on; these are their defaults."""

    half_life: timedelta = timedelta(days=7)
    proven_viewers: int = 20


class State:
    """Of the source of truth, the impressions and the feature store.

    Attributes:
        published: How many posts there are so far.
        following: By reader.
        users: Feature view `user_stats`.
        posts: Feature view `post_stats` and viewers; None until it is embedded.
        affinities: By reader, then by author's id.
        hotness: Of each post, shape (posts,).
        unproven: Which posts had few viewers, shape (posts,).
        by_author: Each author's posts, oldest first.
        liked: By reader, whatever they ever liked.
        shown: By reader, whatever they were ever shown.

    Args:
        world: Where it begins.
    """

    def __init__(self, world: World, rules: Rules | None = None) -> None:
        users, posts = world.size.users, len(world.posts)
        self.published = 0
        self.following = [set(authors) for authors in world.follows]
        followers = np.bincount([a for authors in world.follows for a in authors], minlength=users)
        self.users = [UserFeatures(follower_count=int(count)) for count in followers]
        self.posts: list[PostFeatures | None] = [None] * posts
        self.affinities: list[dict[int, float]] = [{} for _ in range(users)]
        self.hotness = np.full(posts, -np.inf)
        self.unproven = np.zeros(posts, bool)
        self.by_author: list[list[int]] = [[] for _ in range(world.size.authors)]
        self.liked: list[set[int]] = [set() for _ in range(users)]
        self.shown: list[set[int]] = [set() for _ in range(users)]
        self._rules = rules or Rules()
        self._viewers: list[set[int]] = [set() for _ in range(posts)]
        self._likes: list[list[Engagement]] = [[] for _ in range(users)]
        self._showings: list[list[Impression]] = [[] for _ in range(users)]

    def publish(self, world: World) -> Changes:
        """The next post, as the embedding worker makes it known."""
        post, found = self.published, world.posts
        author = int(found.author[post])
        self.posts[post] = PostFeatures(
            author_id=int(world.user_ids[author]),
            like_count=0,
            has_media=bool(found.has_media[post]),
            viewer_count=0,
            embedding=found.embedding[post],
            topic=TOPICS[found.topic[post]],
        )
        self.hotness[post] = self._hotness(world, post, 0)
        self.unproven[post] = True
        self.by_author[author].append(post)
        self.published += 1
        return Changes(posts={post})

    def seen(self, reader: int, since_ms: int) -> dict[int, Seen]:
        """What the reader saw since then, by the post's id."""
        found: dict[int, Seen] = {}
        for each in self._showings[reader]:
            if each.seen_at_ms >= since_ms:
                count = found[each.post_id].count if each.post_id in found else 0
                found[each.post_id] = Seen(each.post_id, count + 1, each.seen_at_ms)
        return found

    def follow(self, reader: int, author: int) -> Changes:
        """The reader follows the author, who may be followed already."""
        if author in self.following[reader] or author == reader:
            return Changes()
        self.following[reader].add(author)
        known = self.users[author]
        self.users[author] = UserFeatures(
            known.follower_count + 1, known.avg_engagement_rate, known.interest_vector
        )
        return Changes(users={author})

    def take_in(self, world: World, showing: Showing, now_ms: int) -> Changes:
        """What the feature worker makes of a visit, once it is over."""
        reader = showing.reader
        changes = Changes()
        self._show(world, showing, now_ms)
        liked = [
            (post, at)
            for post, at in zip(showing.posts, showing.liked_ms, strict=True)
            if at is not None
        ]
        for post, at in liked:
            author_id = int(world.user_ids[world.posts.author[post]])
            when = datetime.fromtimestamp(at / 1000, UTC)
            self._likes[reader].append(Engagement(int(world.posts.ids[post]), author_id, when))
            self.liked[reader].add(post)
            self._count_like(world, post)
            changes.posts.add(post)
        for author in {int(world.posts.author[post]) for post, _ in liked}:
            self._rate(author)
            changes.users.add(author)
        long = any((each or 0) >= LONG_DWELL_MS for each in showing.dwell_ms)
        if liked or long:
            self._learn(world, reader, now_ms)
            changes.users.add(reader)
            changes.affinities.add(reader)
        return changes

    def _show(self, world: World, showing: Showing, now_ms: int) -> None:
        reader = showing.reader
        kept = [e for e in self._showings[reader] if e.seen_at_ms >= now_ms - _KEPT_MS]
        rows = zip(showing.posts, showing.seen_ms, showing.dwell_ms, strict=True)
        for position, (post, seen_ms, dwell_ms) in enumerate(rows):
            author_id = int(world.user_ids[world.posts.author[post]])
            event_id, post_id = f"{showing.feed_id}-{position}", int(world.posts.ids[post])
            kept.append(
                Impression(
                    event_id,
                    int(world.user_ids[reader]),
                    post_id,
                    author_id,
                    seen_ms,
                    position,
                    showing.feed_id,
                    dwell_ms,
                )
            )
            self._view(post, reader)
        self._showings[reader] = kept
        self.shown[reader].update(showing.posts)

    def _view(self, post: int, reader: int) -> None:
        viewers = self._viewers[post]
        viewers.add(reader)
        self._put(post, viewer_count=len(viewers))
        if len(viewers) >= self._rules.proven_viewers:
            self.unproven[post] = False

    def _count_like(self, world: World, post: int) -> None:
        known = self.posts[post]
        assert known is not None  # noqa: S101  it was shown, so it is there
        self._put(post, like_count=known.like_count + 1)
        self.hotness[post] = self._hotness(world, post, known.like_count + 1)

    def _put(
        self, post: int, *, like_count: int | None = None, viewer_count: int | None = None
    ) -> None:
        known = self.posts[post]
        assert known is not None  # noqa: S101  it was shown, so it is there
        self.posts[post] = PostFeatures(
            known.author_id,
            known.like_count if like_count is None else like_count,
            known.has_media,
            known.viewer_count if viewer_count is None else viewer_count,
            known.embedding,
            known.topic,
        )

    def _rate(self, author: int) -> None:
        newest = [self.posts[post] for post in self.by_author[author][-_AUTHOR_POSTS:]]
        known = [post for post in newest if post is not None]
        rate = engagement_rate(
            sum(post.like_count for post in known), sum(post.viewer_count for post in known)
        )
        user = self.users[author]
        self.users[author] = UserFeatures(user.follower_count, rate, user.interest_vector)

    def _learn(self, world: World, reader: int, now_ms: int) -> None:
        likes = self._likes[reader][-_LIKES:]
        long = [e for e in self._showings[reader] if (e.dwell_ms or 0) >= LONG_DWELL_MS]
        dwells = sorted(long, key=lambda each: each.seen_at_ms)[-_DWELLS:]
        ids = [*(each.post_id for each in likes), *(each.post_id for each in dwells)]
        interest, affinities = taste(
            likes,
            dwells,
            self._embeddings(world, ids),
            datetime.fromtimestamp(now_ms / 1000, UTC),
            self._rules.half_life,
        )
        user = self.users[reader]
        self.users[reader] = UserFeatures(user.follower_count, user.avg_engagement_rate, interest)
        self.affinities[reader] = affinities

    def _embeddings(self, world: World, ids: Iterable[int]) -> dict[int, Vector]:
        wanted: NDArray[np.int64] = np.unique(np.array(list(ids), np.int64))
        rows = np.searchsorted(world.posts.ids, wanted)
        return {
            int(post_id): world.posts.embedding[row]
            for post_id, row in zip(wanted, rows, strict=True)
        }

    def _hotness(self, world: World, post: int, like_count: int) -> float:
        at = datetime.fromtimestamp(created_ms(int(world.posts.ids[post])) / 1000, UTC)
        return hotness(like_count, at)
