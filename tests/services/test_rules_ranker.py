"""Features and models: the matrix, the formula, the mock, and a model in ONNX."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from feed.v1 import common_pb2 as c
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from onnx import TensorProto, helper, save_model

from mesh.ids import EPOCH_MS, first_id_at
from mesh.packing import DIMENSIONS, Vector
from ranker_svc.features import COLUMN, FEATURES, Known, Matrix, Subject, build, similarities
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.connect import open_scorer
from stores.features.port import PostFeatures

HOUR_MS = 3_600_000
NOW_MS = EPOCH_MS + 1000 * HOUR_MS


def axis(number: int) -> Vector:
    """A unit vector along one axis."""
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[number] = 1
    return vector


def post(embedding: Vector | None = None, likes: int = 0, viewers: int = 0) -> PostFeatures:
    return PostFeatures(7, likes, True, viewers, embedding)


def matrix_of(
    posts: list[PostFeatures | None],
    *,
    affinities: list[float] | None = None,
    sources: list[c.CandidateSource.ValueType] | None = None,
    hours_ago: float = 0,
) -> Matrix:
    count = len(posts)
    subject = Subject(
        reader_id=1,
        interest=axis(0),
        follower_count=12,
        avg_engagement_rate=0.25,
        post_ids=[first_id_at(NOW_MS - int(hours_ago * HOUR_MS))] * count,
        author_ids=[7] * count,
        sources=sources or [c.CANDIDATE_SOURCE_SOCIAL] * count,
    )
    return build(subject, Known(posts, affinities or [0.0] * count), NOW_MS)


def row(matrix: Matrix, number: int = 0) -> dict[str, float]:
    return dict(zip(FEATURES, matrix[number].tolist(), strict=True))


def test_a_row_has_every_feature_of_its_post() -> None:
    features = row(matrix_of([post(axis(0), 5, 100)], affinities=[0.75], hours_ago=3))
    assert features == pytest.approx(
        {
            "affinity": 0.75,
            "topic_similarity": 1.0,
            "age_hours": 3.0,
            "like_count": 5,
            "viewer_count": 100,
            "engagement_rate": 0.05,
            "has_media": 1,
            "reader_follower_count": 12,
            "reader_avg_engagement_rate": 0.25,
            "source_social": 1,
            "source_discovery": 0,
            "source_popular": 0,
            "source_exploration": 0,
        }
    )


def test_an_unknown_post_has_null_values() -> None:
    features = row(matrix_of([None], hours_ago=3))
    assert features["engagement_rate"] == pytest.approx(0.05)
    for name in ("affinity", "topic_similarity", "like_count", "viewer_count", "has_media"):
        assert features[name] == 0


def test_the_source_is_one_of_four_columns() -> None:
    sources = [
        c.CANDIDATE_SOURCE_SOCIAL,
        c.CANDIDATE_SOURCE_DISCOVERY,
        c.CANDIDATE_SOURCE_POPULAR,
        c.CANDIDATE_SOURCE_EXPLORATION,
        c.CANDIDATE_SOURCE_UNSPECIFIED,
    ]
    first = COLUMN["source_social"]
    block = matrix_of([None] * 5, sources=sources)[:, first:]
    assert block.tolist() == [*np.eye(4).tolist(), [0.0] * 4]


def test_no_candidates_make_an_empty_matrix() -> None:
    assert matrix_of([]).shape == (0, len(FEATURES))


def test_similarity_is_the_cosine_whatever_the_lengths() -> None:
    halfway = (axis(0) + axis(1)) / math.sqrt(2)
    posts = [post(3 * axis(0)), post(halfway), post(axis(1)), post(-axis(0)), post(None), None]
    expected = [1, 1 / math.sqrt(2), 0, -1, 0, 0]
    assert similarities(5 * axis(0), posts).tolist() == pytest.approx(expected, abs=1e-6)


def test_similarity_is_0_without_interest_or_with_vectors_of_nothing() -> None:
    nothing = np.zeros(DIMENSIONS, np.float32)
    assert similarities(None, [post(axis(0))]).tolist() == [0]
    assert similarities(axis(0), [post(nothing)]).tolist() == [0]
    assert similarities(nothing, [post(axis(0))]).tolist() == [0]


def test_a_vector_with_no_number_in_it_does_no_harm() -> None:
    broken = np.full(DIMENSIONS, np.nan, np.float32)
    assert np.isfinite(matrix_of([post(broken)])).all()


@given(
    arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 20), st.just(len(FEATURES))),
        elements=st.floats(0, 1, width=32),
    )
)
def test_the_formula_stays_between_0_and_1(features: Matrix) -> None:
    scores = heuristic.score(features)
    assert scores.shape == (len(features),)
    assert (scores >= 0).all()
    assert (scores <= 1).all()


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (matrix_of([None], affinities=[0.9]), matrix_of([None], affinities=[0.1])),
        (matrix_of([post(axis(0))]), matrix_of([post(axis(1))])),
        (matrix_of([None], hours_ago=1), matrix_of([None], hours_ago=48)),
        (matrix_of([post(None, 50, 100)]), matrix_of([post(None, 1, 100)])),
        (matrix_of([post()]), matrix_of([None])),
        (
            matrix_of([None], sources=[c.CANDIDATE_SOURCE_SOCIAL]),
            matrix_of([None], sources=[c.CANDIDATE_SOURCE_DISCOVERY]),
        ),
    ],
    ids=["affinity", "topic", "recency", "engagement", "media", "followed"],
)
def test_the_formula_prefers(better: Matrix, worse: Matrix) -> None:
    assert heuristic.score(better)[0] > heuristic.score(worse)[0]


async def scores_of(url: str, *matrices: Matrix) -> list[list[float]]:
    """The scores of each matrix, by the model of that URL."""
    async with open_scorer(url) as scorer:
        return [(await scorer.score(matrix)).tolist() for matrix in matrices]


async def test_random_scores_repeat_for_a_seed_and_a_request_also_later() -> None:
    posts: list[PostFeatures | None] = [post(likes=number) for number in range(20)]
    now, later = matrix_of(posts), matrix_of(posts, hours_ago=1)
    scores, also_later, of_others = await scores_of(
        "random://?seed=7", now, later, matrix_of([None] * 20)
    )
    assert scores == also_later
    assert scores != of_others
    assert [scores] == await scores_of("random://?seed=7", now)
    assert [scores] != await scores_of("random://?seed=8", now)
    assert len(set(scores)) == 20


async def test_random_scores_differ_each_time_without_a_seed() -> None:
    features = matrix_of([None] * 20)
    first, second = await scores_of("random://", features, features)
    assert first != second


def save_linear_model(
    path: Path, weights: dict[str, float], *, outputs: int = 1, **metadata: str
) -> None:
    """A model that adds up weighted features, as often as it has outputs a row."""
    column = np.array([[weights.get(name, 0.0)] * outputs for name in FEATURES], np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["features", "weights"], ["scores"])],
        "linear",
        [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", len(FEATURES)])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", outputs])],
        [helper.make_tensor("weights", TensorProto.FLOAT, column.shape, column.ravel())],
    )
    model: Any = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    helper.set_model_props(model, metadata)
    save_model(model, path)


async def test_a_model_in_onnx_scores_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    save_linear_model(path, {"affinity": 0.5}, features=",".join(FEATURES), version="linear-3")
    async with open_scorer(f"onnx://{path}") as scorer:
        scores = await scorer.score(matrix_of([None] * 3, affinities=[0.0, 0.5, 1.0]))
        assert scorer.version == "onnx/linear-3"
    assert scores.tolist() == [0, 0.25, 0.5]


async def test_a_model_trained_on_other_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    save_linear_model(path, {}, features=",".join(reversed(FEATURES)))
    with pytest.raises(ValueError, match=r"other\.onnx does not take the features.*must be affin"):
        await scores_of(f"onnx://{path}")


async def test_a_model_that_does_not_say_its_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.onnx"
    save_linear_model(path, {})
    with pytest.raises(ValueError, match="'features' is missing"):
        await scores_of(f"onnx://{path}")


async def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.onnx"
    path.write_text("no model")
    with pytest.raises(ValueError, match="does not load"):
        await scores_of(f"onnx://{path}")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sorcery://", "sorcery://; known is heuristic://"),
        ("onnx:///nowhere/model.onnx", "there is no file"),
        ("random://?seed=many", "must be a whole number"),
        ("triton://127.0.0.1:8001", "must be triton://HOST:PORT/MODEL"),
        ("triton://127.0.0.1/ranker", "must be triton://HOST:PORT/MODEL"),
        ("triton://127.0.0.1:8001/ranker?version=newest", r"with \?version=NUMBER"),
    ],
)
async def test_a_url_that_is_not_understood_says_why(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await scores_of(url)
