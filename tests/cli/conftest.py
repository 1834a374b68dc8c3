"""An installation to import into: its own SQL, index and media; shared Valkey and vectors."""

import io
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from cli.format import Line, dump_all
from cli.importing import Importer
from cli.resolving import BadLine
from cli.sources import from_file
from mesh.settings import Settings
from stores.connect import Connections
from stores.sql.migrate import migrate


@dataclass
class Installation:
    """Where tests import; `bad` holds what was reported, as "FILE:LINE: reason"."""

    folder: Path
    settings: Settings
    stores: Connections
    bad: list[str] = field(default_factory=list)

    def write(self, *lines: Line | str, name: str = "world.jsonl") -> Path:
        """A file of lines; strings are written as they are."""
        path = self.folder / name
        with path.open("wb") as file:
            for line in lines:
                file.write(f"{line}\n".encode() if isinstance(line, str) else dump_all([line]))
        return path

    async def load(self, *files: Path, strict: bool = False) -> Counter[str]:
        """Imports the files."""

        def report(name: str, bad: BadLine) -> None:
            self.bad.append(f"{Path(name).name}:{bad.number}: {bad.reason}")

        importer = Importer(self.stores, self.settings, silent(), report, strict=strict)
        return await importer.run([from_file(file) for file in files])


def silent() -> Progress:
    """Bars that nobody sees."""
    return Progress(console=Console(file=io.StringIO()), disable=True)


@asynccontextmanager
async def installed(folder: Path, settings: Settings) -> AsyncIterator[Installation]:
    """An empty installation in the folder."""
    await migrate(settings.url(settings.sql_url))
    async with Connections(settings) as stores:
        yield Installation(folder, settings, stores)


@pytest.fixture
async def installation(
    tmp_path: Path, valkey_url: str, vectors_target: str, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Installation]:
    settings = Settings(
        data_dir=tmp_path / "data",
        redis_url=valkey_url,
        events_url=valkey_url,
        vectors_url=f"edge://{vectors_target.removeprefix('unix:')}",
        # The model is made once and for all.
        embedder_url=f"onnx://{tmp_path_factory.getbasetemp() / 'models'}",
    )
    async with installed(tmp_path, settings) as installation:
        yield installation
