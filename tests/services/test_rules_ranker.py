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

from mesh.ids import EPOCH_MS, first_id_at
from mesh.packing import DIMENSIONS, Vector
from ranker_svc.features import (
    CATEGORICAL,
    COLUMN,
    DENSE,
    Features,
    Known,
    Matrix,
    Subject,
    build,
    similarities,
    topic_id,
)
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.contract import Contract, Field, bucket
from stores.features.port import PostFeatures
from tests.fixtures.models import save_linear_model
from tests.fixtures.scorers import open_scorer

HOUR_MS = 3_600_000
NOW_MS = EPOCH_MS + 1000 * HOUR_MS


def axis(number: int) -> Vector:
    """A unit vector along one axis."""
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[number] = 1
    return vector


def post(embedding: Vector | None = None, likes: int = 0, viewers: int = 0) -> PostFeatures:
    return PostFeatures(7, likes, True, viewers, embedding)


def features_of(
    posts: list[PostFeatures | None],
    *,
    affinities: list[float] | None = None,
    sources: list[c.CandidateSource.ValueType] | None = None,
    hours_ago: float = 0,
) -> Features:
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


def matrix_of(*args: Any, **kwargs: Any) -> Matrix:
    return features_of(*args, **kwargs).dense


def row(matrix: Matrix, number: int = 0) -> dict[str, float]:
    return dict(zip(DENSE, matrix[number].tolist(), strict=True))


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
    assert matrix_of([]).shape == (0, len(DENSE))


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
        st.tuples(st.integers(1, 20), st.just(len(DENSE))),
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


async def scores_of(url: str, *batches: Features) -> list[list[float]]:
    """The scores of each batch, by the model of that URL."""
    async with open_scorer(url) as scorer:
        return [(await scorer.score(features)).tolist() for features in batches]


async def test_random_scores_repeat_for_a_seed_and_a_request_also_later() -> None:
    posts: list[PostFeatures | None] = [post(likes=number) for number in range(20)]
    now, later = features_of(posts), features_of(posts, hours_ago=1)
    scores, also_later, of_others = await scores_of(
        "random://?seed=7", now, later, features_of([None] * 20)
    )
    assert scores == also_later
    assert scores != of_others
    assert [scores] == await scores_of("random://?seed=7", now)
    assert [scores] != await scores_of("random://?seed=8", now)
    assert len(set(scores)) == 20


async def test_random_scores_differ_each_time_without_a_seed() -> None:
    features = features_of([None] * 20)
    first, second = await scores_of("random://", features, features)
    assert first != second


async def test_a_model_in_onnx_scores_all_rows(tmp_path: Path) -> None:
    path = tmp_path / "linear.onnx"
    save_linear_model(path, {"affinity": 0.5}, metadata=Contract("linear-3", DENSE).metadata())
    async with open_scorer(f"onnx://{path}") as scorer:
        scores = await scorer.score(features_of([None] * 3, affinities=[0.0, 0.5, 1.0]))
        assert scorer.version == "onnx/linear-3"
    assert scores.tolist() == [0, 0.25, 0.5]


async def test_a_model_trained_on_other_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    metadata = Contract("other", DENSE).metadata()
    metadata["features"] = metadata["features"].replace("affinity", "liking")
    save_linear_model(path, {}, metadata=metadata)
    with pytest.raises(ValueError, match=r"other\.onnx takes features .* not have: liking"):
        await scores_of(f"onnx://{path}")


async def test_a_model_that_does_not_say_its_features_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "silent.onnx"
    save_linear_model(path, {}, metadata={})
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
        ("onnx:///nowhere/model.onnx", "is not there"),
        ("random://?seed=many", "must be a whole number"),
        ("triton://127.0.0.1:8001", "must be triton://HOST:PORT/MODEL"),
        ("triton://127.0.0.1/ranker", "must be triton://HOST:PORT/MODEL"),
        ("triton://127.0.0.1:8001/ranker?version=newest", r"with \?version=NUMBER"),
    ],
)
async def test_a_url_that_is_not_understood_says_why(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        await scores_of(url)


def test_ids_are_whose_and_what_and_when_and_0_where_there_is_none() -> None:
    tagged = PostFeatures(7, 0, False, 0, None, "chess")
    features = features_of([tagged, post(), None])
    rows = [dict(zip(CATEGORICAL, ids, strict=True)) for ids in features.ids.tolist()]
    same = {"reader": 1, "author": 7, "source": c.CANDIDATE_SOURCE_SOCIAL}
    hour = NOW_MS // HOUR_MS % 24
    topics = [topic_id("chess"), 0, 0]
    assert rows == [{**same, "topic": topic, "hour": hour} for topic in topics]


def test_a_topic_has_the_same_id_everywhere() -> None:
    # Logs and models hold these numbers.
    assert topic_id("chess") == 7921158615620370275
    assert topic_id("") == 0


def test_a_model_gets_the_columns_that_it_names_in_its_order() -> None:
    fields = (Field("topic", 50), Field("reader", 10))
    contract = Contract("v", ("has_media", "affinity"), fields)
    features = features_of([post(), None], affinities=[0.5, 0.25])
    inputs = contract.inputs(features)
    assert inputs["dense"].tolist() == [[1, 0.5], [0, 0.25]]
    assert inputs["categorical"].shape == (2, 2)
    assert inputs["categorical"][:, 0].tolist() == [0, 0]
    assert Contract.read(contract.metadata()) == contract
    assert set(inputs) == contract.input_names


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("affinity,has_media", "what is no contract"),
        ('{"dense": ["affinity"]}', "what is no contract"),
        ('{"dense": [], "categorical": []}', "has no dense feature"),
        ('{"dense": ["mood"], "categorical": []}', "does not have: mood"),
        ('{"dense": ["affinity"], "categorical": [{"name": "mood", "buckets": 9}], '
         '"hash": "splitmix64"}', "does not have: mood"),
        ('{"dense": ["affinity"], "categorical": [{"name": "hour", "buckets": 1}], '
         '"hash": "splitmix64"}', "less than 2 buckets"),
        ('{"dense": ["affinity"], "categorical": [{"name": "hour", "buckets": 9}], '
         '"hash": "md5"}', "hashes ids by md5"),
    ],
)  # fmt: skip
def test_a_contract_that_cannot_be_kept_says_why(said: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        Contract.read({"features": said})


@given(st.lists(st.integers(1, 2**63 - 1), min_size=1), st.integers(2, 10_000))
def test_a_bucket_is_in_its_range_and_an_ids_own(ids: list[int], buckets: int) -> None:
    field = Field("reader", buckets)
    found = bucket(np.array([0, *ids], np.int64), field)
    assert found[0] == 0
    assert ((found[1:] >= 1) & (found[1:] < buckets)).all()
    again = bucket(np.array(ids[-1:], np.int64), field)
    assert again[0] == found[-1]


def test_buckets_are_the_same_everywhere_and_evenly_filled() -> None:
    # Models were trained with these.
    field = Field("reader", 101)
    assert bucket(np.array([1, 2, 2**62], np.int64), field).tolist() == [3, 11, 74]
    filled = np.bincount(bucket(np.arange(1, 100_001, dtype=np.int64), field), minlength=101)[1:]
    assert filled.min() > 850
    assert filled.max() < 1150
