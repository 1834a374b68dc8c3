"""Impressions: which posts were shown to whom, kept for 48 hours and asked for 24."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Impression:
    """One showing of one post. Times in milliseconds since the epoch."""

    event_id: str
    user_id: int
    post_id: int
    author_id: int
    seen_at_ms: int
    position: int | None = None
    feed_id: str = ""
    dwell_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """What one reader saw of one post within the window asked for."""

    post_id: int
    count: int
    last_seen_ms: int


class ImpressionStore(Protocol):
    """The long memory (Pinot, or SQL). Raises `mesh.errors.Unavailable` when away."""

    @property
    def reads_the_log(self) -> bool:
        """Whether it takes impressions from the event log by itself, so that nobody has to."""
        ...

    async def record(self, impressions: Sequence[Impression]) -> None:
        """Adds impressions; one with a known `event_id` is counted once.

        Where the store reads the log they are announced there, and take a moment until they are
        seen. `RecentSeen` covers it.
        """
        ...

    async def seen(self, user_id: int, since_ms: int, limit: int) -> list[Seen]:
        """What the reader saw since then, the latest first."""
        ...

    async def dwelt(
        self, user_id: int, min_dwell_ms: int, since_ms: int, limit: int
    ) -> list[Impression]:
        """Impressions on screen for at least `min_dwell_ms`, the latest first."""
        ...

    async def page(self, after: tuple[int, str], limit: int) -> list[Impression]:
        """Impressions above `after` = (seen_at_ms, event_id), in that order."""
        ...

    async def purge(self, before_ms: int) -> int:
        """Forgets older impressions; returns how many. 0 where retention is built in."""
        ...


class RecentSeen(Protocol):
    """The short memory (Redis): the last minutes, readable the moment they are written.

    Covers the time an impression takes to arrive in the long memory.
    """

    async def record(self, user_id: int, post_ids: Sequence[int], seen_at_ms: int) -> None: ...

    async def seen(self, user_id: int) -> list[Seen]: ...
