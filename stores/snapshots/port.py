"""Snapshots: a served feed, kept so that its later pages and its explanation agree with it."""

from typing import Protocol


class SnapshotStore(Protocol):
    """Raises `mesh.errors.Unavailable` when it cannot be reached."""

    async def save(self, feed_id: str, snapshot: bytes, ttl_s: int) -> None: ...

    async def load(self, feed_id: str) -> bytes | None:
        """None when it was never saved, or has expired."""
        ...
