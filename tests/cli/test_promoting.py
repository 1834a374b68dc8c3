"""`feedmesh model promote` and its kin. With a real Triton: tests/stack/test_promotion.py."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from cli.main import app
from stores.registry.folder import CARD, MODEL, FolderRegistry
from stores.registry.port import State
from tests.fixtures.cards import around, good_card
from tests.fixtures.models import save_linear_model
from tests.fixtures.valkey import free_port


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    return FolderRegistry(tmp_path / "registry")


def add(registry: FolderRegistry, **changes: Any) -> int:
    with registry.adding() as (number, folder):
        save_linear_model(folder / MODEL, {"affinity": 0.5})
        (folder / CARD).write_text(json.dumps(good_card() | {"version": str(number)} | changes))
    return number


def model(registry: FolderRegistry, *arguments: object, **env: str) -> Result:
    env |= {"FEED_REGISTRY_URL": f"file://{registry.root}", "COLUMNS": "200"}
    return CliRunner().invoke(app, ["model", *map(str, arguments)], env=env)


def test_a_good_version_is_promoted_and_rolled_back(registry: FolderRegistry) -> None:
    first, second = add(registry), add(registry)
    assert model(registry, "promote", first).exit_code == 0
    answer = model(registry, "promote", second)
    assert "version 2 is promoted; before it 1 was" in answer.stdout
    assert registry.state() == State(second, (first,))
    assert model(registry, "rollback").exit_code == 0
    assert registry.state() == State(first)
    answer = model(registry, "rollback")
    assert answer.exit_code == 1
    assert "no version was promoted before this one" in answer.stderr
    assert registry.state() == State(first)


def test_a_refused_version_is_told_every_reason_and_nothing_changes(
    registry: FolderRegistry,
) -> None:
    model(registry, "promote", add(registry))
    metrics = good_card()["metrics"] | {"heuristic": {"auc": around(0.9, 0.01)}}
    bad = add(registry, metrics=metrics, parity=0.5, off_policy=None)
    answer = model(registry, "promote", bad)
    assert answer.exit_code == 1
    lines = answer.stderr.splitlines()
    assert all(line.startswith(f"version {bad} is not promoted: ") for line in lines)
    assert ["heuristic's" in lines[0], "5.0e-01" in lines[1], "off-policy" in lines[2]] == [
        True
    ] * 3
    assert len(lines) == 3
    assert registry.state() == State(1)
    assert "3 against it" in model(registry, "list").stdout


@pytest.mark.parametrize("command", ["promote", "show", "shadow"])
def test_a_version_that_is_not_there_is_an_error(registry: FolderRegistry, command: str) -> None:
    answer = model(registry, command, 7)
    assert answer.exit_code == 1
    assert "there is no model version 7" in answer.stderr
    assert registry.state() == State()


def test_a_shadow_is_set_and_taken_away(registry: FolderRegistry) -> None:
    first, second = add(registry), add(registry)
    model(registry, "promote", first)
    assert (
        "version 2 is scored beside, for 25%"
        in model(registry, "shadow", second, "--share", 0.25).stdout
    )
    assert registry.state() == State(first, (), second, 0.25)
    assert "shadow 25%" in model(registry, "list").stdout
    assert model(registry, "shadow", first).exit_code == 1, "it is promoted"
    assert model(registry, "shadow").exit_code == 2
    assert model(registry, "shadow", second, "--off").exit_code == 2
    assert model(registry, "shadow", second, "--share", 1.5).exit_code == 2
    assert registry.state() == State(first, (), second, 0.25)
    assert model(registry, "shadow", "--off").exit_code == 0
    assert registry.state() == State(first)


def test_versions_are_listed_and_shown(registry: FolderRegistry) -> None:
    assert model(registry, "list").exit_code == 0
    for _ in range(3):
        add(registry)
    bare = add(registry, metrics={}, parity=None, off_policy=None)
    for number in (1, 2):
        model(registry, "promote", number)
    lines = model(registry, "list").stdout.splitlines()
    row = next(line for line in lines if " 2 " in line)
    assert all(part in row for part in ("promoted", "0.8000 (0.7900 to 0.8100)", "ok"))
    assert any("earlier" in line and " 1 " in line for line in lines)
    shown = model(registry, "show", 2).stdout
    assert "version 2, promoted" in shown
    assert all(part in shown for part in ("SNIPS", "0.1200 (0.1100 to 0.1300)", '"affinity"'))
    assert "not to be promoted" not in shown
    assert model(registry, "show", bare).stdout.count("not to be promoted") == 4


def test_what_triton_cannot_serve_is_not_promoted(registry: FolderRegistry, tmp_path: Path) -> None:
    add(registry)
    repository = tmp_path / "models"
    for url, reason in [
        (f"triton://127.0.0.1:{free_port()}/ranker", "connect"),
        ("onnx://", "FEED_MODEL_URL must be triton://"),
    ]:
        answer = model(
            registry, "promote", 1, FEED_TRITON_REPOSITORY=str(repository), FEED_MODEL_URL=url
        )
        assert answer.exit_code == 1
        assert reason in answer.stderr
        assert registry.state() == State()
        assert not list(repository.glob("ranker/[0-9]*")), "it is as it was"
