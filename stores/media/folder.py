"""Media objects in a folder, which the gateway serves."""

import asyncio
import math
import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar

from mesh import telemetry
from mesh.errors import NotFound, Unavailable
from stores.durable import sync
from stores.media.images import check_key, content_type_of

P = ParamSpec("P")
T = TypeVar("T")


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
        check_key(key, content_type)
        with telemetry.span("store media", attributes={"feed.media.bytes": len(data)}):
            await _in_thread(_write, self._root / key, data)

    async def get(self, key: str) -> tuple[bytes, str]:
        content_type = content_type_of(key)
        if content_type is None:
            raise NotFound("no such media object")
        return await _in_thread((self._root / key).read_bytes), content_type

    async def delete(self, keys: Sequence[str]) -> None:
        paths = [self._root / key for key in keys if content_type_of(key)]
        await _in_thread(_delete, paths)

    def url(self, key: str) -> str:
        return f"{self._url}/media/{key}"

    async def keys(self, older_than_s: float = 0.0) -> AsyncIterator[str]:
        until = time.time() - older_than_s
        folders = await _in_thread(_names, self._root)
        for folder in folders:
            for name in await _in_thread(_names, self._root / folder, until):
                key = f"{folder}/{name}"
                if content_type_of(key):
                    yield key


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
    sync(path.parent)
    if new_folder:
        sync(path.parent.parent)


def _delete(paths: Sequence[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _names(folder: Path, until: float = math.inf) -> list[str]:
    """What is in it and was last written before that time."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if _written_at(entry) <= until)


def _written_at(entry: os.DirEntry[str]) -> float:
    try:
        return entry.stat().st_mtime
    except FileNotFoundError:
        # Deleted since.
        return math.inf
