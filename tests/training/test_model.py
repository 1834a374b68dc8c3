"""The model learns, repeats, exports, and knows what it does not know. Needs PyTorch."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from ranker_svc.features import Features
from ranker_svc.scorers.contract import FEATURES_KEY
from ranker_svc.scorers.onnx import OnnxScorer
from tests.training import planted
from training.evaluation import auc
from training.split import Split, by_days

pytestmark = [pytest.mark.training, pytest.mark.timeout(600)]
torch = pytest.importorskip("torch")

from training import baselines, export, inference, model  # noqa: E402 - they need torch
from training.fitting import Recipe, loss_of  # noqa: E402

_WEIGHTS = model.Weights(1, 0.25)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def split() -> Split:
    return by_days(planted.examples(40_000))


@pytest.fixture(scope="module")
def trained(split: Split) -> model.Model:
    return _train(split)


def test_it_learns_a_pattern_of_pairs_that_logistic_regression_cannot(
    trained: model.Model, split: Split
) -> None:
    liked = split.test.like > 0
    logistic = baselines.fitted(split, trained.contract)["logistic"]
    ours = auc(_like(trained, split.test.features), liked)
    assert ours > auc(logistic.like(split.test.features), liked) + 0.05


def test_the_same_seed_gives_the_same_model_and_another_seed_another(split: Split) -> None:
    few = Split(split.train.at(np.arange(4_000)), split.validation, split.test)
    one, again, other = (
        _train(few, epochs=1, seed=seed).predict(split.test.features) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-4


def test_chances_are_calibrated(trained: model.Model, split: Split) -> None:
    likes = _like(trained, split.test.features).mean()
    assert likes == pytest.approx(float(split.test.like.mean()), abs=0.02)


def test_unknown_dwell_is_left_out_of_the_loss() -> None:
    logits = torch.tensor([[0.3, 2.0], [-1.0, 5.0]])
    unknown = torch.tensor([[1.0, float("nan")], [0.0, 1.0]])
    other = logits.clone()
    other[0, 1] = -9.0
    assert float(loss_of(logits, unknown)) == float(loss_of(other, unknown))
    assert float(loss_of(logits, torch.full((2, 2), float("nan")))) == 0


async def test_the_ranker_scores_the_exported_file_as_the_model_does(
    trained: model.Model, split: Split, tmp_path: Path
) -> None:
    file = tmp_path / "model.onnx"
    assert export.export(trained, split.test.features, file) <= export.TOLERANCE
    scorer = OnnxScorer(file)
    assert scorer.version == f"onnx/{trained.contract.version}"
    for rows in (1, 150):
        some = Features(split.test.features.dense[:rows], split.test.features.ids[:rows])
        scores = await scorer.score(some)
        np.testing.assert_allclose(scores, trained.predict(some)[:, 0], atol=1e-5)


def test_an_export_that_differs_is_refused_and_leaves_no_file(
    trained: model.Model, split: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(file: Path, features: Features) -> NDArray[np.float32]:
        return inference.run(file, features) + np.float32(1e-4)

    monkeypatch.setattr(export, "run", off)
    with pytest.raises(ValueError, match="differ from the model's"):
        export.export(trained, split.test.features, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("column", [0, 1], ids=["reader", "author"])
def test_nobody_is_scored_as_anybody(trained: model.Model, split: Split, column: int) -> None:
    ids = split.test.features.ids.copy()
    ids[:, column] = 0
    likes = _like(trained, Features(split.test.features.dense, ids)).mean()
    assert likes == pytest.approx(float(split.test.like.mean()), abs=0.08)


def test_new_ids_have_scores_and_nulls_those_of_zero(trained: model.Model, split: Split) -> None:
    known = split.test.features
    new = trained.predict(Features(known.dense, known.ids + 10**12))
    assert ((new > 0) & (new < 1)).all()
    nulls = trained.predict(Features(np.full_like(known.dense, np.nan), known.ids))
    zeros = trained.predict(Features(np.zeros_like(known.dense), known.ids))
    np.testing.assert_array_equal(nulls, zeros)


def test_numbers_far_beyond_those_of_training_have_the_scores_of_the_furthest(
    trained: model.Model, split: Split
) -> None:
    dense = split.test.features.dense[:100]
    ids = split.test.features.ids[:100]
    far, further = (trained.predict(Features(dense + by, ids)) for by in (1e6, 1e9))
    np.testing.assert_allclose(far, further, atol=1e-6)


def test_a_saved_model_comes_back(trained: model.Model, split: Split, tmp_path: Path) -> None:
    trained.save(tmp_path / "model.pt")
    loaded = model.Model.load(tmp_path / "model.pt")
    assert loaded.contract == trained.contract
    np.testing.assert_array_equal(
        loaded.predict(split.test.features), trained.predict(split.test.features)
    )


def test_a_model_of_other_columns_is_refused(
    trained: model.Model, split: Split, tmp_path: Path
) -> None:
    import onnx

    file = tmp_path / "model.onnx"
    export.export(trained, split.test.features, file)
    proto = onnx.load(file)
    metadata = trained.contract.metadata()
    metadata[FEATURES_KEY] = metadata[FEATURES_KEY].replace("affinity", "mood")
    onnx.helper.set_model_props(proto, metadata)
    onnx.save(proto, file)
    with pytest.raises(ValueError, match="does not have: mood"):
        OnnxScorer(file)


def test_weights_of_nothing_are_refused(split: Split) -> None:
    with pytest.raises(ValueError, match="both 0"):
        model.Model(model.contract_for(split.train), model.Weights(0, 0))


def test_the_score_is_the_weighted_mean_of_both_chances(trained: model.Model, split: Split) -> None:
    score, like, dwell = trained.predict(split.test.features).T
    np.testing.assert_allclose(score, (like + 0.25 * dwell) / 1.25, atol=1e-6)


def test_fields_of_few_values_keep_them_apart(split: Split) -> None:
    contract = model.contract_for(split.train)
    buckets = contract.inputs(split.train.features)["categorical"]
    for column, field in enumerate(contract.categorical):
        ids = split.train.features.ids[:, column]
        assert len(np.unique(buckets[:, column])) == len(np.unique(ids)), field


def _train(split: Split, epochs: int = 12, seed: int = 1) -> model.Model:
    recipe: Recipe = replace(model.recipe(seed), epochs=epochs, rows=1024)
    trained, _ = model.train(split, _WEIGHTS, recipe)
    trained.contract = replace(trained.contract, version="7")
    return trained


def _like(trained: model.Model, features: Features) -> NDArray[np.float64]:
    return trained.predict(features)[:, 1].astype(np.float64)
