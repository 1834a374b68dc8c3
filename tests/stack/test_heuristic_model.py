"""The heuristic as an ONNX model gives the heuristic's scores."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ranker_svc.features import COLUMN, FEATURES, Matrix
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.onnx import OnnxScorer
from stack.triton import heuristic as heuristic_model


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> OnnxScorer:
    path: Path = tmp_path_factory.mktemp("heuristic") / "heuristic.onnx"
    heuristic_model.save(path)
    return OnnxScorer(path)


@given(
    arrays(np.float32, (7, len(FEATURES)), elements=st.floats(-1, 1, width=32)),
    arrays(np.float32, 7, elements=st.floats(0, 1e6, width=32)),
)
async def test_the_model_gives_what_the_formula_gives(
    scorer: OnnxScorer, features: Matrix, ages: Matrix
) -> None:
    features[:, COLUMN["age_hours"]] = ages
    features[:, COLUMN["engagement_rate"]] = np.abs(features[:, COLUMN["engagement_rate"]])
    assert scorer.version == "onnx/heuristic-1"
    np.testing.assert_allclose(await scorer.score(features), heuristic.score(features), atol=1e-6)
