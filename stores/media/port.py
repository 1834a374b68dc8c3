"""Media objects: images and videos by key."""

from collections.abc import AsyncIterator, Sequence
from typing import Protocol


class MediaStore(Protocol):
    """Raises `mesh.errors.Unavailable` when it cannot be reached."""

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Stores the object; durable when it returns."""
        ...

    async def get(self, key: str) -> tuple[bytes, str]:
        """The object and its content type. Raises `NotFound`."""
        ...

    async def delete(self, keys: Sequence[str]) -> None:
        """Unknown keys are harmless."""
        ...

    def url(self, key: str) -> str:
        """Where a client downloads the object."""
        ...

    def keys(self) -> AsyncIterator[str]:
        """Every stored key."""
        ...
