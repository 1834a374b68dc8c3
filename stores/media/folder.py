"""Media objects in a folder, which the gateway serves."""

import asyncio
import os
import re
import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from mesh import telemetry
from mesh.errors import InvalidArgument, NotFound, Unavailable
from stores.media.images import CONTENT_TYPES

P = ParamSpec("P")
T = TypeVar("T")

# The two digits that a key begins with spread the objects over folders.
_KEY = re.compile(r"([0-9a-f]{2})/\1[0-9a-f]{14,62}(\.[a-z0-9]{2,4})")


class FolderMediaStore:
    """One file an object; the content type is told by the key's suffix.

    Args:
        root: Made when the first object comes.
        public_url: How clients reach the gateway.
    """

    def __init__(self, root: Path, public_url: str) -> None:
        self._root = root
        self._url = public_url.rstrip("/")

    async def put(self, key: str, data: bytes, content_type: str) -> None:
        """Raises `InvalidArgument` on a key that is none, or whose suffix is of another type."""
        known = _content_type(key)
        if known is None:
            raise InvalidArgument("not the key of a media object", fields={"key": repr(key)[:100]})
        if known != content_type:
            raise InvalidArgument(
                "the key's suffix is of another content type",
                fields={"content_type": f"is {content_type[:100]}, {known} was expected"},
            )
        with telemetry.span("store media", attributes={"feed.media.bytes": len(data)}):
            await _in_thread(_write, self._root / key, data)

    async def get(self, key: str) -> tuple[bytes, str]:
        content_type = _content_type(key)
        if content_type is None:
            raise NotFound("no such media object")
        return await _in_thread((self._root / key).read_bytes), content_type

    async def delete(self, keys: Sequence[str]) -> None:
        paths = [self._root / key for key in keys if _content_type(key)]
        await _in_thread(_delete, paths)

    def url(self, key: str) -> str:
        return f"{self._url}/media/{key}"

    async def keys(self) -> AsyncIterator[str]:
        folders = await _in_thread(_names, self._root)
        for folder in folders:
            for name in await _in_thread(_names, self._root / folder):
                key = f"{folder}/{name}"
                if _content_type(key):
                    yield key


def _content_type(key: str) -> str | None:
    """The type of the object; None when this is no key, and so no path within the folder."""
    match = _KEY.fullmatch(key)
    return CONTENT_TYPES.get(match[2]) if match else None


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(partial(work, *args, **kwargs))
    except FileNotFoundError:
        raise NotFound("no such media object") from None
    except OSError as error:
        raise Unavailable(f"the media folder failed: {error.strerror}") from error


def _write(path: Path, data: bytes) -> None:
    """Durable when it returns: the content, its name, and the folder's name."""
    new_folder = not path.parent.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".put-", delete=False) as file:
        try:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(file.name, path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise
    _sync(path.parent)
    if new_folder:
        _sync(path.parent.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder)) if folder.is_dir() else []
