"""Features as the ranker reads them, and the small sets that discovery draws from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from mesh.packing import Vector


@dataclass(frozen=True, slots=True)
class UserFeatures:
    """Feature view `user_stats`."""

    follower_count: int = 0
    # Likes per unique viewer over the user's own recent posts, 0 to 1.
    avg_engagement_rate: float = 0.0
    # Unit vector of shape (384,); None without history.
    interest_vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class PostFeatures:
    """Feature view `post_stats`."""

    author_id: int
    like_count: int
    has_media: bool
    # Unique readers who were shown the post, within about 1 %.
    viewer_count: int
    # Unit vector of shape (384,); None until it is embedded.
    embedding: Vector | None
    # The post's first tag; empty without one.
    topic: str = ""


class FeatureStore(Protocol):
    """Raises `mesh.errors.Unavailable` when it cannot be reached. All writes may be repeated.

    What `Connections.features` gives may answer with values of some moments ago; who computes new
    values from old ones reads `Connections.feature_cache`, where a write is read at once.
    """

    async def user(self, user_id: int) -> UserFeatures:
        """The defaults of `UserFeatures` for an unknown user."""
        ...

    async def posts(self, post_ids: Sequence[int]) -> list[PostFeatures | None]:
        """One for each id, None for an unknown post."""
        ...

    async def affinities(self, user_id: int, author_ids: Sequence[int]) -> list[float]:
        """Feature view `user_author_affinity`: 0 to 1 for each author, 0 when unknown."""
        ...

    async def put_user_stats(
        self,
        user_id: int,
        *,
        follower_count: int | None = None,
        avg_engagement_rate: float | None = None,
    ) -> None:
        """Writes the values that are given."""
        ...

    async def put_taste(
        self, user_id: int, interest_vector: Vector | None, affinities: dict[int, float]
    ) -> None:
        """Replaces the user's interest vector and all their affinities."""
        ...

    async def put_post(
        self,
        post_id: int,
        *,
        author_id: int,
        has_media: bool,
        embedding: Vector | None = None,
        topic: str = "",
    ) -> None:
        """Writes what does not change; the counters stay as they are."""
        ...

    async def put_like_counts(self, like_counts: dict[int, int]) -> None:
        """Writes like counts by post id; unknown posts are passed over."""
        ...

    async def add_viewers(self, viewers: Sequence[tuple[int, int]]) -> None:
        """Counts (post_id, user_id) showings; a reader counts once a post. Unknown posts: none."""
        ...

    async def delete_post(self, post_id: int) -> None:
        """Forgets the post's features, and takes it out of `popular` and `unproven`."""
        ...

    async def put_popular(self, hotness: dict[int, float]) -> None:
        """Sets posts' places among the popular; the 1,000 hottest are kept."""
        ...

    async def popular(self, limit: int) -> list[tuple[int, float]]:
        """(post_id, hotness), hottest first."""
        ...

    async def put_unproven(self, post_ids: Sequence[int]) -> None:
        """Adds posts to those that had few impressions; the 5,000 newest are kept."""
        ...

    async def drop_unproven(self, post_ids: Sequence[int]) -> None:
        """Takes out posts that were shown often enough."""
        ...

    async def unproven(self, limit: int) -> list[int]:
        """The newest posts with few impressions, newest first."""
        ...


class FeaturePusher(Protocol):
    """Carries changes of the feature cache on to a feature server, each at least once.

    Several may work at once; one at a time is enough.
    """

    async def push(self) -> int:
        """Pushes the changes that wait the longest; returns how many, 0 when none is left.

        Raises:
            FeedError: They were not all pushed, and will be tried again by the next call, or after
                the others where the server refuses just them.
        """
        ...

    async def push_again(self) -> int:
        """Takes everything in the cache for changed; returns how many users and posts.

        For a feature server that begins empty, or lost what it had.
        """
        ...
