"""triton:// where Triton is away, or is not what it should be; a real one is in tests/stack."""

from collections.abc import AsyncIterator
from typing import Any

import grpc
import numpy as np
import pytest
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from mesh.channels import call
from mesh.errors import FailedPrecondition, Internal, NotFound, Unavailable
from ranker_svc.features import CATEGORICAL, COLUMN, DENSE, Features
from ranker_svc.scorers.contract import Contract
from ranker_svc.service import server
from tests.fixtures.scorers import open_scorer
from tests.fixtures.sql import fresh_ids
from tests.fixtures.valkey import free_port
from tests.services.conftest import Serve
from tests.services.test_ranker import request_for

COLUMNS = Contract("", DENSE).metadata()["features"]


class Impostor(GRPCInferenceServiceServicer):  # type: ignore[misc]  # no stubs
    """Speaks Triton's protocol and answers what it is told to; scores are the row's affinity."""

    def __init__(self) -> None:
        self.features, self.version, self.number = COLUMNS, "first", "1"
        self.inputs, self.outputs = ["dense"], ["likes", "more"]
        self.datatype, self.columns = "FP32", 1
        self.optional: set[str] = set()
        self.own: dict[str, str] = {}
        self.configs_read = 0

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        if request.name != "ranker" or request.version not in ("", self.number):
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such model")
        self.configs_read += 1
        answer = pb.ModelConfigResponse()
        for name in self.inputs:
            answer.config.input.add(name=name, optional=name in self.optional)
        for name in self.outputs:
            answer.config.output.add(name=name)
        answer.config.parameters["features"].string_value = self.features
        answer.config.parameters["version"].string_value = self.version
        for key, value in self.own.items():
            answer.config.parameters[key].string_value = value
        return answer

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        sent = {each.name for each in request.inputs}
        assert set(self.inputs) - self.optional <= sent <= set(self.inputs)
        assert [each.name for each in request.outputs] == self.outputs[:1]
        matrix = np.frombuffer(request.raw_input_contents[0], "<f4")
        matrix = matrix.reshape(tuple(request.inputs[0].shape))
        scores = np.repeat(matrix[:, :1], self.columns, axis=1)
        return pb.ModelInferResponse(
            model_name=request.model_name,
            model_version=self.number,
            outputs=[
                pb.ModelInferResponse.InferOutputTensor(
                    name=self.outputs[0], datatype=self.datatype, shape=scores.shape
                )
            ],
            raw_output_contents=[scores.tobytes()] if self.columns else [],
        )


@pytest.fixture
async def impostor() -> AsyncIterator[tuple[Impostor, str]]:
    """One that runs, and the URL of its model."""
    serving, servicer = grpc.aio.server(), Impostor()
    add_GRPCInferenceServiceServicer_to_server(servicer, serving)
    port = serving.add_insecure_port("127.0.0.1:0")
    await serving.start()
    yield servicer, f"triton://127.0.0.1:{port}/ranker"
    await serving.stop(0)


def some_features(rows: int = 3) -> Features:
    chance = np.random.default_rng(rows)
    return Features(
        chance.random((rows, len(DENSE)), np.float32),
        chance.integers(0, 2**62, (rows, len(CATEGORICAL))),
    )


async def test_the_models_own_names_are_used_and_its_contract_is_read_once(
    impostor: tuple[Impostor, str],
) -> None:
    servicer, url = impostor
    features = some_features()
    async with open_scorer(url) as scorer:
        assert scorer.version == "triton/ranker"
        for dense in (features.dense, features.dense[::-1], np.asfortranarray(features.dense)):
            scores = await scorer.score(Features(dense, features.ids))
            assert scores.tolist() == dense[:, 0].tolist()
        assert scorer.version == "triton/ranker/first"
    assert servicer.configs_read == 1


@pytest.mark.parametrize("features", ["", COLUMNS.replace("affinity", "liking"), "affinity,age"])
async def test_a_model_of_other_features_gives_no_scores(
    impostor: tuple[Impostor, str], features: str
) -> None:
    servicer, url = impostor
    servicer.features = features
    async with open_scorer(url) as scorer:
        for _ in range(2):
            with pytest.raises(
                FailedPrecondition, match=r"ranker (takes features|does not say|says in)"
            ):
                await scorer.score(some_features())
        servicer.features = COLUMNS
        assert len(await scorer.score(some_features())) == 3


@pytest.mark.parametrize(("inputs", "outputs"), [([], ["likes"]), (["a", "b"], ["likes"]),
                                                 (["dense"], [])])  # fmt: skip
async def test_a_model_of_other_tensors_gives_no_scores(
    impostor: tuple[Impostor, str], inputs: list[str], outputs: list[str]
) -> None:
    servicer, url = impostor
    servicer.inputs, servicer.outputs = inputs, outputs
    async with open_scorer(url) as scorer:
        with pytest.raises(FailedPrecondition, match=r"must have .* and an output"):
            await scorer.score(some_features())


@pytest.mark.parametrize(("datatype", "columns"), [("FP64", 1), ("FP32", 2), ("FP32", 0)])
async def test_scores_of_another_shape_or_type_are_an_error(
    impostor: tuple[Impostor, str], datatype: str, columns: int
) -> None:
    servicer, url = impostor
    servicer.datatype, servicer.columns = datatype, columns
    async with open_scorer(url) as scorer:
        with pytest.raises(Internal, match="ranker gave"):
            await scorer.score(some_features())


async def test_a_model_that_was_replaced_is_checked_before_its_scores_are_taken(
    impostor: tuple[Impostor, str],
) -> None:
    servicer, url = impostor
    async with open_scorer(url) as scorer:
        await scorer.score(some_features())
        servicer.number, servicer.version, servicer.features = "2", "second", "others"
        with pytest.raises(Unavailable, match="changed from 1 to 2"):
            await scorer.score(some_features())
        with pytest.raises(FailedPrecondition, match="what is no contract"):
            await scorer.score(some_features())
        servicer.features = COLUMNS
        await scorer.score(some_features())
        assert scorer.version == "triton/ranker/second"


async def test_a_number_that_triton_does_not_have_is_not_found(
    impostor: tuple[Impostor, str],
) -> None:
    _, url = impostor
    async with open_scorer(f"{url}?version=1") as scorer:
        assert len(await scorer.score(some_features())) == 3
    async with open_scorer(f"{url}?version=2") as scorer:
        with pytest.raises(NotFound):
            await scorer.score(some_features())


async def test_a_numbers_own_contract_goes_before_the_general_one(
    impostor: tuple[Impostor, str],
) -> None:
    servicer, url = impostor
    # What another version takes is optional.
    servicer.inputs, servicer.optional = ["dense", "categorical"], {"categorical"}
    servicer.features = "of another version"
    own = Contract("own", ("age_hours", "affinity")).metadata()
    servicer.own = {f"{key}.1": value for key, value in own.items()}
    servicer.own |= {"features.11": "of another one"}
    features = some_features()
    async with open_scorer(f"{url}?version=1") as scorer:
        scores = await scorer.score(features)
        assert scorer.version == "triton/ranker/own"
    assert scores.tolist() == features.dense[:, COLUMN["age_hours"]].tolist()
    async with open_scorer(url) as scorer:
        with pytest.raises(FailedPrecondition, match="what is no contract"):
            await scorer.score(features)


async def test_where_nobody_listens_it_is_unavailable_and_soon_left_alone() -> None:
    async with open_scorer(f"triton://127.0.0.1:{free_port()}/ranker") as scorer:
        for _ in range(5):
            with pytest.raises(Unavailable, match="connect"):
                await scorer.score(some_features())
        with pytest.raises(Unavailable, match="model is left alone"):
            await scorer.score(some_features())


async def test_feeds_are_ranked_by_the_heuristic_where_nobody_listens(serve: Serve) -> None:
    url = f"triton://127.0.0.1:{free_port()}/ranker"
    async with serve(server, model_url=url) as channel:
        for _ in range(7):
            answer = await call(
                RankerServiceStub(channel).RankCandidates,
                request_for(fresh_ids(2), fresh_ids(2)),
                timeout=5,
            )
            assert answer.degraded == ["model"]
            assert answer.model_version == "heuristic/1"
            assert all(score > 0 for score in answer.scores)
