"""What an import reads: numbered lines, and the media files beside them."""

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from cli.format import MAX_LINE_BYTES

BATCH_LINES = 1_000
MAX_MEDIA_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Source:
    """Lines to import. `digest` stands for the content: equal ones are the same file.

    `read_media` takes the name that a post gives its file; it raises OSError or ValueError.
    """

    name: str
    digest: str
    size: int
    open: Callable[[], BinaryIO]
    read_media: Callable[[str], bytes]


@dataclass(frozen=True, slots=True)
class RawLine:
    """A line as it stands in the file; `content` is None when it is too long to be read."""

    number: int
    content: bytes | None


def from_file(path: Path) -> Source:
    """A JSON Lines file; media lies in its folder or below."""
    folder = path.resolve().parent

    def read_media(name: str) -> bytes:
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise ValueError("lies outside of the folder")
        if file.stat().st_size > MAX_MEDIA_BYTES:
            raise ValueError("is larger than 10 MB")
        return file.read_bytes()

    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return Source(str(path), digest, path.stat().st_size, lambda: path.open("rb"), read_media)


def from_memory(name: str, content: bytes, media: dict[str, bytes]) -> Source:
    """Lines that were made in this process, and their media by name."""
    digest = hashlib.sha256(content).hexdigest()
    return Source(name, digest, len(content), lambda: io.BytesIO(content), media.__getitem__)


def read_batch(file: BinaryIO, after: int) -> list[RawLine]:
    """The next lines, empty ones too, numbered from `after` + 1; none at the end of the file."""
    lines = islice(_lines(file), BATCH_LINES)
    return [RawLine(number, line) for number, line in enumerate(lines, start=after + 1)]


def _lines(file: BinaryIO) -> Iterator[bytes | None]:
    while line := file.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES:
            rest = line
            while rest and not rest.endswith(b"\n"):
                rest = file.readline(MAX_LINE_BYTES)
            yield None
        else:
            yield line
