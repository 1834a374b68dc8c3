"""feed.v1.RankerService over gRPC, on a real feature store."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest
from feed.v1 import common_pb2 as c
from feed.v1 import ranker_pb2 as r
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from numpy.typing import NDArray

from mesh import deadlines
from mesh.channels import call
from mesh.errors import InvalidArgument
from mesh.packing import DIMENSIONS, Vector, pack
from ranker_svc.features import Features
from ranker_svc.recent_posts import RecentPosts
from ranker_svc.scorers.port import Lineup
from ranker_svc.service import RankerService, server
from ranker_svc.shadow import Shadowing
from stores.connect import Connections
from tests.fixtures.models import save_linear_model
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.fixtures.valkey import free_port
from tests.services.conftest import Serve

if TYPE_CHECKING:
    from feed.v1.ranker_pb2_grpc import RankerServiceAsyncStub


@pytest.fixture(scope="session")
async def stub(serve: Serve) -> AsyncIterator["RankerServiceAsyncStub"]:
    async with serve(server) as channel:
        yield RankerServiceStub(channel)


def direction(seed: int) -> Vector:
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


def request_for(post_ids: list[int], author_ids: list[int]) -> r.RankCandidatesRequest:
    count = len(post_ids)
    return r.RankCandidatesRequest(
        reader=c.Reader(user_id=fresh_id(), interest_vector=pack(direction(1))),
        candidates=c.Candidates(
            post_ids=post_ids,
            author_ids=author_ids,
            sources=[c.CANDIDATE_SOURCE_SOCIAL] * count,
            retrieval_scores=[1.0] * count,
        ),
    )


async def test_topic_and_affinity_raise_a_score_and_are_told(
    stub: "RankerServiceAsyncStub", stores: Connections
) -> None:
    near, far, _ = posts = fresh_ids(3)
    friend, other = fresh_ids(2)
    features = stores.features()
    await features.put_post(near, author_id=friend, has_media=False, embedding=direction(1))
    await features.put_post(far, author_id=other, has_media=False, embedding=-direction(1))
    request = request_for(posts, [friend, other, other])
    await features.put_taste(request.reader.user_id, direction(1), {friend: 0.5})
    answer = await call(stub.RankCandidates, request, timeout=5)
    assert list(answer.topic_similarities) == pytest.approx([1, -1, 0], abs=1e-2)
    assert list(answer.author_affinities) == pytest.approx([0.5, 0, 0], abs=1e-6)
    assert answer.scores[0] > answer.scores[1]
    assert answer.scores[0] > answer.scores[2]
    assert answer.model_version == "heuristic/1"
    assert not answer.degraded


async def test_penalties_are_subtracted(stub: "RankerServiceAsyncStub") -> None:
    request = request_for(fresh_ids(3), fresh_ids(3))
    plain = await call(stub.RankCandidates, request, timeout=5)
    request.penalties.extend([0, 0.5, math.nan])
    penalised = await call(stub.RankCandidates, request, timeout=5)
    less = [a - b for a, b in zip(plain.scores, penalised.scores, strict=True)]
    assert less == pytest.approx([0, 0.5, 0], abs=1e-3)


async def test_no_candidates_have_no_scores(stub: "RankerServiceAsyncStub") -> None:
    answer = await call(stub.RankCandidates, request_for([], []), timeout=5)
    assert not answer.scores
    assert answer.model_version == "heuristic/1"


async def test_without_redis_posts_are_ranked_by_null_features(
    serve: Serve, away: dict[str, str]
) -> None:
    async with serve(server, redis_url=away["redis_url"]) as channel:
        answer = await call(
            RankerServiceStub(channel).RankCandidates,
            request_for(fresh_ids(2), fresh_ids(2)),
            timeout=5,
        )
    assert answer.degraded == ["features"]
    assert list(answer.topic_similarities) == [0, 0]
    assert all(0 < score <= 1 for score in answer.scores)


async def test_without_a_feature_server_posts_are_ranked_by_the_cache(
    serve: Serve, stub: "RankerServiceAsyncStub", stores: Connections
) -> None:
    posts, author = fresh_ids(3), fresh_id()
    for number, post in enumerate(posts):
        await stores.features().put_post(
            post, author_id=author, has_media=False, embedding=direction(number)
        )
    request = request_for(posts, [author] * 3)
    await stores.features().put_taste(request.reader.user_id, direction(1), {author: 0.5})
    known = await call(stub.RankCandidates, request, timeout=5)
    async with serve(server, features_url=f"feast+http://127.0.0.1:{free_port()}") as channel:
        answer = await call(RankerServiceStub(channel).RankCandidates, request, timeout=5)
    assert answer.degraded == ["features"]
    assert list(answer.topic_similarities) == list(known.topic_similarities)
    assert list(answer.author_affinities) == list(known.author_affinities)


async def test_a_seeded_random_model_repeats_itself(serve: Serve) -> None:
    request = request_for(fresh_ids(5), fresh_ids(5))
    async with serve(server, model_url="random://?seed=7") as channel:
        stub = RankerServiceStub(channel)
        first = await call(stub.RankCandidates, request, timeout=5)
        again = await call(stub.RankCandidates, request, timeout=5)
    assert first.model_version == "random/seed=7"
    assert list(first.scores) == list(again.scores)
    assert len(set(first.scores)) == 5


async def test_a_model_in_onnx_gives_the_scores(serve: Serve, tmp_path: Path) -> None:
    path = tmp_path / "constant.onnx"
    save_linear_model(path, {"source_social": 0.25})
    async with serve(server, model_url=f"onnx://{path}") as channel:
        request = request_for(fresh_ids(2), fresh_ids(2))
        answer = await call(RankerServiceStub(channel).RankCandidates, request, timeout=5)
    assert answer.model_version == "onnx/constant"
    assert list(answer.scores) == [0.25, 0.25]


async def test_scores_are_numbers_from_0_to_1_whatever_the_model_gives(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "wild.onnx"
    save_linear_model(path, {"source_social": math.nan})
    async with serve(server, model_url=f"onnx://{path}") as channel:
        request = request_for(fresh_ids(2), fresh_ids(2))
        answer = await call(RankerServiceStub(channel).RankCandidates, request, timeout=5)
    assert list(answer.scores) == [0, 0]


async def test_a_model_that_fails_is_replaced_by_the_heuristic(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "two.onnx"
    save_linear_model(path, {}, outputs=2)
    async with serve(server, model_url=f"onnx://{path}") as channel:
        request = request_for(fresh_ids(2), fresh_ids(2))
        answer = await call(RankerServiceStub(channel).RankCandidates, request, timeout=5)
    assert answer.degraded == ["model"]
    assert answer.model_version == "heuristic/1"
    assert all(score > 0 for score in answer.scores)


class StuckScorer:
    """Never answers."""

    version = "stuck"

    async def score(self, _: Features) -> NDArray[np.float32]:
        return await asyncio.Future()


async def test_a_model_that_is_late_is_replaced_before_the_deadline(stores: Connections) -> None:
    lineup = Lineup((StuckScorer(),))
    shadowing = Shadowing(Random(1))
    service = RankerService(stores.features(), RecentPosts(0), lambda: lineup, shadowing)
    with deadlines.within(0.2):
        async with asyncio.timeout(0.2):
            answer = await service.RankCandidates(request_for(fresh_ids(2), fresh_ids(2)), None)
    assert answer.degraded == ["model"]
    assert answer.model_version == "heuristic/1"


async def test_150_candidates_are_ranked_and_151_refused(stub: "RankerServiceAsyncStub") -> None:
    request = request_for(fresh_ids(150), fresh_ids(150))
    assert len((await call(stub.RankCandidates, request, timeout=5)).scores) == 150
    with pytest.raises(InvalidArgument) as error:
        await call(stub.RankCandidates, request_for(fresh_ids(151), fresh_ids(151)), timeout=5)
    assert error.value.fields == {"candidates": "has 151 where at most 150 are ranked"}


async def test_bad_input_is_refused_by_field(stub: "RankerServiceAsyncStub") -> None:
    good = request_for(fresh_ids(2), fresh_ids(2))
    for field, spoil in {
        "reader.user_id": r.RankCandidatesRequest(),
        "candidates.sources": r.RankCandidatesRequest(
            reader=good.reader, candidates=c.Candidates(post_ids=[1])
        ),
        "penalties": r.RankCandidatesRequest(
            reader=good.reader, candidates=good.candidates, penalties=[0.5]
        ),
        "vector": r.RankCandidatesRequest(reader=c.Reader(user_id=1, interest_vector=b"123")),
    }.items():
        with pytest.raises(InvalidArgument) as error:
            await call(stub.RankCandidates, spoil, timeout=5)
        assert field in error.value.fields
