"""Posts and likes: the source of truth of what was published."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from stores.events.port import Event


@dataclass(frozen=True, slots=True)
class StoredMedia:
    """One media object of a post; `key` names it in the media store. Sizes in pixels, 0 unknown."""

    key: str
    content_type: str
    width: int
    height: int


@dataclass(frozen=True, slots=True)
class StoredPost:
    """A post as published. `post_id` is a snowflake: it orders by time."""

    post_id: int
    author_id: int
    text: str
    tags: tuple[str, ...]
    media: tuple[StoredMedia, ...]
    created_at: datetime
    like_count: int = 0

    @property
    def topic(self) -> str:
        """What it is about, as its author says first: the first tag; empty without one."""
        return self.tags[0] if self.tags else ""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """A client's key for one write; `fingerprint` is a hash of the request's content."""

    key: str
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Engagement:
    """One like of a reader."""

    post_id: int
    author_id: int
    at: datetime


class PostStore(Protocol):
    """Raises `mesh.errors.Unavailable` when the source of truth cannot be reached.

    Every write that takes an `event` appends it to the outbox in the same transaction, and only
    when the write changed something.
    """

    async def create(
        self, post: StoredPost, event: Event, idempotency: IdempotencyKey | None = None
    ) -> StoredPost:
        """Publishes the post; returns it, or the earlier one of the same idempotency key.

        Raises `FailedPrecondition` when the author used the key for other content.
        """
        ...

    async def find_idempotent(
        self, author_id: int, idempotency: IdempotencyKey
    ) -> StoredPost | None:
        """The post that the author created with this key, if any; errors as `create`."""
        ...

    async def forget_idempotency_keys(self, before: datetime) -> int:
        """Forgets keys used before then; returns how many. 0 where retention is built in."""
        ...

    async def create_many(self, posts: Sequence[StoredPost]) -> None:
        """Adds posts in bulk, announcing nothing, passing over ids that are there already."""
        ...

    async def delete(self, post_id: int, author_id: int, event: Event) -> StoredPost:
        """Deletes the post and its likes. Raises `NotFound`; `PermissionDenied` to a stranger."""
        ...

    async def get(self, post_ids: Sequence[int]) -> dict[int, StoredPost]:
        """The posts that exist, by id."""
        ...

    async def authors(self, post_ids: Sequence[int]) -> dict[int, int]:
        """The author of each post that exists, by post id; cheaper than `get`."""
        ...

    async def by_author(self, author_id: int, before: int | None, limit: int) -> list[StoredPost]:
        """The author's posts with an id below `before`, newest first."""
        ...

    async def newest_ids(self, author_ids: Sequence[int], per_author: int) -> dict[int, list[int]]:
        """The newest post ids of each author, newest first; an entry for every author asked for."""
        ...

    async def page(self, after: int, limit: int) -> list[StoredPost]:
        """Posts with an id above `after`, in the order of ids."""
        ...

    async def like(self, user_id: int, post_id: int, at: datetime, event: Event) -> bool:
        """Likes; False when it was liked already. Raises `NotFound`."""
        ...

    async def unlike(self, user_id: int, post_id: int, event: Event) -> bool:
        """Takes the like back; False when there was none. Raises `NotFound`."""
        ...

    async def like_many(self, likes: Sequence[tuple[int, int, datetime]]) -> None:
        """Adds likes (user_id, post_id, at) in bulk, announcing nothing, and counts them.

        Repeats and likes of posts that do not exist are passed over.
        """
        ...

    async def liked(self, user_id: int, post_ids: Sequence[int]) -> set[int]:
        """Which of the posts the user likes."""
        ...

    async def recent_likes(self, user_id: int, limit: int) -> list[Engagement]:
        """The user's newest likes of posts that still exist, newest first."""
        ...

    async def likes_page(
        self, after: tuple[int, int], limit: int
    ) -> list[tuple[int, int, datetime]]:
        """Likes (user_id, post_id, at) above `after`, in the order of (user_id, post_id)."""
        ...
