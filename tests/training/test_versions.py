"""A training's result is a version of the registry, with its card and its report."""

import json
from pathlib import Path

import pytest

from stores.registry.folder import FolderRegistry
from tests.training import planted
from training.examples import Examples
from training.split import by_days

# It takes seconds; but the time limit of a test is for a machine that has nothing else to do.
pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]
pytest.importorskip("torch")

from training.__main__ import add_version  # noqa: E402 - it needs torch
from training.model import Weights  # noqa: E402


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> FolderRegistry:
    registry = FolderRegistry(tmp_path_factory.mktemp("registry"))
    split = by_days(planted.examples(6_000))
    assert add_version(registry, split, Weights(1, 0.25), None, seed=1) == 1
    return registry


def test_the_card_says_what_is_known(registry: FolderRegistry) -> None:
    card = registry.card(1)
    assert card["version"] == "1"
    assert set(card["metrics"]) == {
        "deepfm", "chronological", "popularity", "heuristic", "logistic", "boosting",
    }  # fmt: skip
    for measures in card["metrics"].values():
        assert set(measures) == {"auc", "logloss", "ece", "ndcg20", "user_auc"}
        for estimate in measures.values():
            assert estimate["low"] <= estimate["high"]
    assert card["parity"] <= 1e-5
    assert card["data"]["rows"] == 6_000
    assert card["training"]["epochs"] > 0
    json.dumps(card, allow_nan=False)


def test_the_report_has_its_sections_and_plots_and_needs_nothing_else(
    registry: FolderRegistry,
) -> None:
    page = (registry.folder(1) / "report.html").read_text()
    for title in ("Measures", "Reliability", "AUC by segment", "Training", "Data"):
        assert f"<h2>{title}</h2>" in page
    assert page.count("<svg") == 5
    assert "src=" not in page
    assert "<link" not in page


def test_a_sample_of_the_test_days_is_kept(registry: FolderRegistry) -> None:
    kept = Examples.read(registry.folder(1) / "test.npz")
    assert 0 < len(kept) <= 20_000


def test_a_version_can_be_evaluated_on_a_file(
    registry: FolderRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from cli.main import app

    file = tmp_path / "examples.npz"
    planted.examples(2_000, seed=5).write(file)
    monkeypatch.setenv("FEED_REGISTRY_URL", f"file://{registry.root}")
    ended = CliRunner().invoke(app, ["model", "evaluate", "1", "--examples", str(file)])
    assert ended.exit_code == 0, ended.output
    assert "AUC" in ended.output
    ended = CliRunner().invoke(app, ["model", "evaluate", "9", "--examples", str(file)])
    assert ended.exit_code == 1
