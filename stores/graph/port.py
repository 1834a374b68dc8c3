"""The social graph: who follows and who blocks whom."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stores.events.port import Event


@dataclass(frozen=True, slots=True)
class Neighborhood:
    """What a feed needs to know of the people around one reader."""

    # Every followed author.
    following: list[int]
    # Those of `following` whose posts are pulled at read, not pushed to mailboxes.
    pulled: list[int]
    # Blocked by the reader, or blocking the reader.
    blocked: list[int]


@dataclass(frozen=True, slots=True)
class Relation:
    """How one user stands to another."""

    following: bool
    blocking: bool
    blocked_by: bool


class GraphStore(Protocol):
    """Raises `mesh.errors.Unavailable` when the graph cannot be reached.

    Every write is idempotent, returns whether it changed anything, and announces its `event` (at
    least once) when it did. Users are not checked for existence: callers do.
    """

    async def follow(self, user_id: int, author_id: int, max_following: int, event: Event) -> bool:
        """Raises `PermissionDenied` under a block, `ResourceExhausted` at the limit."""
        ...

    async def unfollow(self, user_id: int, author_id: int, event: Event) -> bool: ...

    async def block(self, user_id: int, target_id: int, event: Event) -> bool:
        """Blocks, and ends following in both directions."""
        ...

    async def unblock(self, user_id: int, target_id: int, event: Event) -> bool: ...

    async def follow_many(self, edges: Sequence[tuple[int, int]]) -> None:
        """Adds (follower_id, author_id) edges in bulk, announcing nothing; repeats are harmless."""
        ...

    async def block_many(self, edges: Sequence[tuple[int, int]]) -> None:
        """Adds (user_id, target_id) blocks in bulk; ends no following and announces nothing."""
        ...

    async def neighborhood(self, user_id: int) -> Neighborhood: ...

    async def relation(self, user_id: int, other_id: int) -> Relation: ...

    async def follower_counts(self, author_ids: Sequence[int]) -> dict[int, int]:
        """An entry for every author asked for."""
        ...

    async def following_count(self, user_id: int) -> int: ...

    async def followers_page(self, author_id: int, after: int, limit: int) -> list[int]:
        """Followers with an id above `after`, in the order of ids; empty at the end."""
        ...

    async def mark_pulled(self, author_id: int) -> None:
        """From now on the author's posts are pulled at read. Repeats are harmless.

        It stays so when followers leave: posts that were not pushed must go on being found.
        """
        ...

    async def is_pulled(self, author_id: int) -> bool: ...

    async def pulled_page(self, after: int, limit: int) -> list[int]:
        """Authors marked as pulled with an id above `after`, in the order of ids."""
        ...

    async def blocks_page(self, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        """Blocks (user_id, target_id) above `after`, in that order."""
        ...

    async def follows_page(self, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
        """Edges (follower_id, author_id) above `after`, in that order."""
        ...
