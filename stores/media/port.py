"""Media objects: images and videos by key."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


class MediaStore(Protocol):
    """Raises `mesh.errors.Unavailable` when it cannot be reached."""

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Stores the object; durable when it returns.

        Raises `InvalidArgument` on a key that is none, or whose suffix is of another type.
        """
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

    def keys(self, older_than_s: float = 0.0) -> AsyncIterator[str]:
        """Every stored key whose object was stored so many seconds ago, or earlier."""
        ...


@dataclass(frozen=True, slots=True)
class UploadForm:
    """A multipart form by which a client uploads: `fields` first, then the file as `file`."""

    url: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Uploaded:
    """An upload that has arrived; `version` is another one whenever its content is. Bytes."""

    size: int
    version: str


class UploadStore(Protocol):
    """Where clients put large media themselves; a post takes a copy from there.

    Uploads have keys of their own, which begin with "uploads/", and no public URL. A form may be
    used again until it expires, so what was looked at is told by its version.

    Raises `mesh.errors.Unavailable` when it cannot be reached.
    """

    def form(self, key: str, content_type: str, max_bytes: int, expires_at: datetime) -> UploadForm:
        """What uploads one object of that type, of 1 to `max_bytes` bytes. Reaches nobody."""
        ...

    async def look(self, key: str) -> Uploaded:
        """Raises `NotFound`."""
        ...

    async def read(self, key: str, version: str, max_bytes: int) -> bytes:
        """The beginning of the upload.

        Raises `NotFound`, and `FailedPrecondition` when it has another version by now.
        """
        ...

    async def take(self, key: str, version: str, media_key: str, content_type: str) -> None:
        """Copies the upload to a media object; durable when it returns. Errors as `read`."""
        ...

    async def discard(self, keys: Sequence[str]) -> None:
        """Unknown keys are harmless."""
        ...

    def stale(self, older_than_s: float) -> AsyncIterator[str]:
        """Every upload that arrived so many seconds ago, or earlier."""
        ...
