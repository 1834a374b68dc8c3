"""The heuristic as an ONNX model gives the heuristic's scores."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ranker_svc.features import CATEGORICAL, COLUMN, DENSE, Features, Matrix
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.onnx import OnnxScorer
from stack.triton import heuristic as heuristic_model


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> OnnxScorer:
    path: Path = tmp_path_factory.mktemp("heuristic") / "heuristic.onnx"
    heuristic_model.save(path)
    return OnnxScorer(path)


@given(
    arrays(np.float32, (7, len(DENSE)), elements=st.floats(-1, 1, width=32)),
    arrays(np.float32, 7, elements=st.floats(0, 1e6, width=32)),
)
async def test_the_model_gives_what_the_formula_gives(
    scorer: OnnxScorer, dense: Matrix, ages: Matrix
) -> None:
    dense[:, COLUMN["age_hours"]] = ages
    dense[:, COLUMN["engagement_rate"]] = np.abs(dense[:, COLUMN["engagement_rate"]])
    features = Features(dense, np.zeros((len(dense), len(CATEGORICAL)), np.int64))
    assert scorer.version == "onnx/heuristic-1"
    np.testing.assert_allclose(await scorer.score(features), heuristic.score(dense), atol=1e-6)
