"""The model registry as a folder: `<root>/versions/<number>/` and `<root>/state.json`.

A version is complete or not there at all, and never changed: `model.onnx` as
`ranker_svc.scorers.onnx` takes it, `card.json` with what is known of it, and whatever else the
training kept. The state is one small file that is replaced whole.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mesh.errors import FailedPrecondition, NotFound
from stores.durable import sync
from stores.registry.port import State

MODEL = "model.onnx"
CARD = "card.json"


class FolderRegistry:
    """`stores.registry.port.ModelRegistry`, and what training and promotion do to it.

    All of it blocks: for jobs, and in threads.

    Args:
        root: Made when the first version comes.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    @contextmanager
    def adding(self) -> Iterator[tuple[int, Path]]:
        """The next number, and the folder to fill; a version when the block ends well."""
        with self._locked():
            number = max(self.versions(), default=0) + 1
            unfinished = self._versions / f".{number}"
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            try:
                yield number, unfinished
                missing = [name for name in (MODEL, CARD) if not (unfinished / name).exists()]
                if missing:
                    raise FailedPrecondition(f"a version without {' and '.join(missing)}")
                for file in unfinished.rglob("*"):
                    sync(file)
                unfinished.rename(self._versions / str(number))
                sync(self._versions)
            finally:
                shutil.rmtree(unfinished, ignore_errors=True)

    def versions(self) -> list[int]:
        """All numbers, in order."""
        try:
            names = os.listdir(self._versions)
        except FileNotFoundError:
            return []
        return sorted(int(name) for name in names if name.isdecimal())

    def folder(self, number: int) -> Path:
        """Where the version's files are; raises NotFound."""
        folder = self._versions / str(number)
        if not folder.is_dir():
            raise NotFound(f"there is no model version {number}")
        return folder

    def model_file(self, number: int) -> Path:
        """The version's ONNX file; raises NotFound."""
        return self.folder(number) / MODEL

    def card(self, number: int) -> dict[str, Any]:
        """What is known of the version; raises NotFound."""
        card: dict[str, Any] = json.loads((self.folder(number) / CARD).read_text())
        return card

    def state(self) -> State:
        """What was last written; nothing promoted before that."""
        try:
            said = json.loads(self.state_file.read_text())
        except FileNotFoundError:
            return State()
        return State(**{**said, "earlier": tuple(said["earlier"])})

    @contextmanager
    def changing(self) -> Iterator[tuple[State, list[State]]]:
        """The state, and where to put the next one: it is written, whole, when the block ends well.

        Nobody else changes it meanwhile.
        """
        with self._locked():
            following: list[State] = []
            yield self.state(), following
            if following:
                unfinished = self.root / ".state.json"
                unfinished.write_text(json.dumps(asdict(following[-1]), indent=1))
                sync(unfinished)
                unfinished.rename(self.state_file)
                sync(self.root)

    @property
    def state_file(self) -> Path:
        """Replaced at each change: who follows it looks at its inode or time."""
        return self.root / "state.json"

    @property
    def _versions(self) -> Path:
        return self.root / "versions"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
