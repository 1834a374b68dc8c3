"""Estimates from a log that was made with known chances of a like."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stores.log.parquet import ParquetLog
from tests.training.chosen import World, model_of
from training.off_policy import estimate, table
from training.pools import Choices

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]
ESTIMATORS = ("ips", "snips", "dr")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def world(root: Path) -> World:
    world = World(feeds=600)
    world.journal.write(root)
    return world


@pytest.fixture(scope="module")
def judged(root: Path, world: World) -> dict[str, Any]:
    return estimate(root, model_of("topic_similarity", 1.0, root / "similarity.onnx"))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_interval_holds_what_the_policy_is_worth(
    world: World, judged: dict[str, Any], name: str
) -> None:
    candidate, truth = judged[name]["candidate"], world.value_by_likes()
    assert candidate["low"] < truth < candidate["high"]
    assert candidate["high"] - candidate["low"] < truth / 3
    assert candidate["low"] > judged[name]["logged"]["high"]


def test_what_was_logged_is_worth_what_it_earned(root: Path, judged: dict[str, Any]) -> None:
    choices = Choices.read(ParquetLog(root))
    mean = float(choices.reward.mean(dtype=np.float64))
    assert judged["places"] == len(choices)
    for name in ("ips", "snips"):
        assert judged[name]["logged"]["value"] == pytest.approx(mean, rel=1e-9)
    assert judged["dr"]["logged"]["value"] == pytest.approx(mean, abs=0.005)
    assert judged["effective_sample_size"] < len(choices) / 2
    assert f"{len(choices)} places" in table(judged)


def test_a_model_that_orders_as_the_log_did_is_worth_the_same(root: Path, world: World) -> None:
    found = estimate(root, model_of("age_hours", -1.0, root / "age.onnx"))
    assert found["effective_sample_size"] == pytest.approx(found["places"])
    for name in ESTIMATORS:
        assert found[name]["candidate"] == pytest.approx(found[name]["logged"])
