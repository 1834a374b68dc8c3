"""Model versions appear whole, and the state is replaced whole."""

from pathlib import Path

import pytest

from mesh.errors import FailedPrecondition, NotFound
from stores.registry.folder import FolderRegistry
from stores.registry.port import State


def add(registry: FolderRegistry) -> int:
    with registry.adding() as (number, folder):
        (folder / "model.onnx").write_bytes(b"a model")
        (folder / "card.json").write_text(f'{{"number": {number}}}')
    return number


def test_versions_are_numbered_from_one_and_keep_their_cards(tmp_path: Path) -> None:
    registry = FolderRegistry(tmp_path / "registry")
    assert registry.versions() == []
    assert [add(registry), add(registry)] == [1, 2]
    assert registry.versions() == [1, 2]
    assert registry.card(2) == {"number": 2}
    with pytest.raises(NotFound):
        registry.folder(3)


def test_what_was_not_finished_is_no_version(tmp_path: Path) -> None:
    registry = FolderRegistry(tmp_path)
    with pytest.raises(RuntimeError), registry.adding():
        raise RuntimeError
    with pytest.raises(FailedPrecondition, match=r"card\.json"), registry.adding() as (_, folder):
        (folder / "model.onnx").write_bytes(b"a model")
    assert registry.versions() == []
    assert add(registry) == 1


def test_the_state_is_what_was_last_put(tmp_path: Path) -> None:
    registry = FolderRegistry(tmp_path)
    assert registry.state() == State()
    with registry.changing() as (_, following):
        following.append(State(2, (1,), 3, 0.1))
    with registry.changing() as (state, _):
        assert state == State(2, (1,), 3, 0.1)
    assert registry.state() == State(2, (1,), 3, 0.1)
    with pytest.raises(ZeroDivisionError), registry.changing() as (_, following):
        following.append(State(1 // 0))
    assert registry.state() == State(2, (1,), 3, 0.1)
