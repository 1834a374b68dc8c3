"""triton://, on a real Triton: scores, the model's contract, outages, and one trace."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
from feed.v1 import ranker_pb2 as r
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from prometheus_client.registry import REGISTRY

from mesh import telemetry
from mesh.breaker import State
from mesh.channels import call
from mesh.errors import FailedPrecondition
from mesh.otlp import Span
from mesh.settings import Settings
from ranker_svc.features import DENSE
from ranker_svc.scorers import heuristic
from ranker_svc.scorers.contract import Contract
from ranker_svc.service import server
from stack.place import Place
from stack.triton import heuristic as heuristic_model
from stack.triton.install import Installation, install
from stack.triton.server import Triton
from tests.eventually import eventually
from tests.fixtures.mesh import running_mesh
from tests.fixtures.models import save_linear_model
from tests.fixtures.otlp import OtlpReceiver
from tests.fixtures.scorers import open_scorer
from tests.fixtures.sql import fresh_ids
from tests.fixtures.valkey import free_port
from tests.services.conftest import Serve
from tests.services.test_ranker import request_for
from tests.services.test_triton_scorer import some_features

pytestmark = pytest.mark.stack

VERSION = "triton/ranker/heuristic-1"
INFER = "inference.GRPCInferenceService/ModelInfer"


@pytest.fixture(scope="session")
async def installation(settings: Settings) -> Installation:
    async with asyncio.timeout(600):
        return await install(Place.of(settings).cache)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = tmp_path_factory.mktemp("model") / "heuristic.onnx"
    heuristic_model.save(path)
    return path


@pytest.fixture(scope="session")
async def receiver() -> AsyncIterator[OtlpReceiver]:
    async with OtlpReceiver() as running:
        yield running


@pytest.fixture(scope="session")
async def triton(
    installation: Installation,
    model: Path,
    receiver: OtlpReceiver,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[Triton]:
    """One that nobody stops, whose spans go to the receiver."""
    folder = tmp_path_factory.mktemp("triton")
    traces_url = f"{receiver.http_endpoint}/v1/traces"
    async with running(Triton(installation, model, folder, free_port(), traces_url)) as started:
        yield started


@asynccontextmanager
async def running(triton: Triton) -> AsyncIterator[Triton]:
    await triton.start()
    try:
        yield triton
    finally:
        await triton.stop()


async def rank(channel: grpc.aio.Channel, candidates: int = 3) -> r.RankCandidatesResponse:
    request = request_for(fresh_ids(candidates), fresh_ids(candidates))
    return await call(RankerServiceStub(channel).RankCandidates, request, timeout=5)


async def is_used(channel: grpc.aio.Channel) -> bool:
    """Whether Triton gave the scores of a feed; otherwise the heuristic must have."""
    answer = await rank(channel)
    assert all(score > 0 for score in answer.scores)
    if answer.model_version == VERSION:
        return True
    assert answer.model_version == "heuristic/1"
    assert "model" in answer.degraded
    return False


def breaker() -> State:
    return State(int(REGISTRY.get_sample_value("breaker_state", {"name": "model"}) or 0))


@pytest.mark.parametrize("rows", [150, 1])
async def test_the_model_in_triton_gives_the_scores_that_it_gives_here(
    triton: Triton, rows: int
) -> None:
    features = some_features(rows)
    async with open_scorer(triton.url) as scorer:
        scores = await scorer.score(features)
        assert scorer.version == VERSION
    np.testing.assert_allclose(scores, heuristic.score(features.dense), atol=1e-5)


async def test_a_feed_is_ranked_by_the_model_in_triton(triton: Triton, serve: Serve) -> None:
    async with serve(server, model_url=triton.url) as channel:
        answer = await rank(channel, 150)
    assert answer.model_version == VERSION
    assert len(answer.scores) == 150
    assert not answer.degraded


async def test_a_version_that_triton_does_not_have_is_replaced_by_the_heuristic(
    triton: Triton, serve: Serve
) -> None:
    async with serve(server, model_url=f"{triton.url}?version=7") as channel:
        answer = await rank(channel)
    assert (answer.model_version, list(answer.degraded)) == ("heuristic/1", ["model"])


async def test_a_model_of_other_features_is_refused_and_replaced_by_the_heuristic(
    installation: Installation, serve: Serve, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    metadata = Contract("other", DENSE).metadata()
    metadata["features"] = metadata["features"].replace("affinity", "liking")
    save_linear_model(other, {"affinity": 1.0}, metadata=metadata)
    async with running(Triton(installation, other, tmp_path / "triton", free_port())) as triton:
        async with open_scorer(triton.url) as scorer:
            with pytest.raises(FailedPrecondition, match="ranker takes features that this"):
                await scorer.score(some_features(3))
        async with serve(server, model_url=triton.url) as channel:
            answer = await rank(channel)
    assert (answer.model_version, list(answer.degraded)) == ("heuristic/1", ["model"])


async def test_feeds_are_ranked_while_triton_is_away_and_by_it_when_it_is_back(
    installation: Installation, model: Path, serve: Serve, tmp_path: Path
) -> None:
    triton = Triton(installation, model, tmp_path / "triton", free_port())
    async with serve(server, model_url=triton.url) as channel:
        assert not await is_used(channel), "it has not been started yet"
        async with running(triton):
            await eventually(lambda: is_used(channel), within_s=30)
            os.kill(triton.pid, signal.SIGKILL)
            await triton.ended()

            async def given_up() -> bool:
                assert not await is_used(channel)
                return breaker() is State.OPEN

            await eventually(given_up)
            await triton.start()
            await eventually(lambda: is_used(channel), within_s=30)
            assert breaker() is State.CLOSED


async def test_a_triton_that_hangs_is_left_alone(
    installation: Installation,
    model: Path,
    serve: Serve,
    spans: InMemorySpanExporter,
    tmp_path: Path,
) -> None:
    async with (
        running(Triton(installation, model, tmp_path / "triton", free_port())) as triton,
        serve(server, model_url=triton.url) as channel,
    ):
        await eventually(lambda: is_used(channel))
        os.kill(triton.pid, signal.SIGSTOP)
        try:
            # On busy cores it may answer once more before the signal reaches it.
            await eventually(lambda: psutil.Process(triton.pid).status() == psutil.STATUS_STOPPED)
            used = await asyncio.gather(*(is_used(channel) for _ in range(5)))
            assert not any(used)
            assert breaker() is State.OPEN
            spans.clear()
            assert not await is_used(channel)
        finally:
            os.kill(triton.pid, signal.SIGCONT)
        await eventually(lambda: is_used(channel), within_s=30)
    finished = spans.get_finished_spans()
    refused = {
        span.context.trace_id: span.attributes
        for span in finished
        if (span.attributes or {}).get("feed.breaker.open") == "model"
    }
    assert refused
    assert {(a or {}).get("feed.without.model") for a in refused.values()} == {"UNAVAILABLE"}
    assert not [s.name for s in finished if s.name == INFER and s.context.trace_id in refused]


async def test_every_request_is_one_trace_into_tritons_own_span(
    triton: Triton, serve: Serve, spans: InMemorySpanExporter, receiver: OtlpReceiver
) -> None:
    spans.clear()
    receiver.resource_spans.clear()
    async with serve(server, model_url=triton.url) as channel:
        for _ in range(25):
            answers = await asyncio.gather(*(rank(channel) for _ in range(4)))
            assert {answer.model_version for answer in answers} == {VERSION}
    ours = {
        (span.context.trace_id.to_bytes(16), span.context.span_id.to_bytes(8))
        for span in spans.get_finished_spans()
        if (span.name, span.kind) == (INFER, SpanKind.CLIENT)
    }
    assert len(ours) == 100

    def parents() -> list[tuple[bytes, bytes]]:
        return [
            (span.trace_id, span.parent_span_id)
            for service, span in receiver.spans()
            if (service, span.name) == ("triton", "InferRequest")
        ]

    await eventually(lambda: len(parents()) >= 100)
    assert sorted(parents()) == sorted(ours)
    kinds = {span.kind for _, span in receiver.spans() if span.name == "InferRequest"}
    assert kinds == {SpanKind.SERVER.value + 1}, "OTLP counts from 1"


async def test_a_trace_that_is_not_kept_leaves_nothing_in_triton_either(
    triton: Triton, serve: Serve, receiver: OtlpReceiver
) -> None:
    receiver.resource_spans.clear()
    unsampled = trace.NonRecordingSpan(trace.SpanContext(1, 2, is_remote=False))
    async with serve(server, model_url=triton.url) as channel:
        with trace.use_span(unsampled):
            for _ in range(20):
                assert (await rank(channel)).model_version == VERSION
        with telemetry.span("kept") as kept:
            await rank(channel)

    def infers() -> list[bytes]:
        return [s.trace_id for service, s in receiver.spans() if s.name == "InferRequest"]

    # Triton sends in the order in which it answered: when this one is there, all are.
    await eventually(infers)
    assert infers() == [kept.get_span_context().trace_id.to_bytes(16)]


@pytest.mark.timeout(300)
async def test_a_hundred_feeds_are_a_hundred_traces_from_rest_into_triton(
    installation: Installation, model: Path, tmp_path: Path
) -> None:
    port = free_port()
    async with running_mesh(FEED_MODEL_URL=f"triton://127.0.0.1:{port}/ranker") as mesh:
        traces_url = f"{mesh.receiver.http_endpoint}/v1/traces"
        async with running(Triton(installation, model, tmp_path / "triton", port, traces_url)):
            author, reader = await mesh.sign_up("author"), await mesh.sign_up("reader")
            await mesh.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
            for number in range(3):
                await mesh.post(author, f"Number {number}.")

            async def ranked_by_triton() -> bool:
                page = await mesh.feed(reader)
                return bool(page["items"]) and not page["degraded"]

            await eventually(ranked_by_triton, within_s=60)
            pages = [await mesh.feed(reader) for _ in range(100)]
            assert [page for page in pages if page["degraded"]] == []

            def joined(spans: Sequence[Span]) -> bool:
                ours, theirs = [
                    [s for s in spans if (s.name, s.kind) == wanted]
                    for wanted in ((INFER, "CLIENT"), ("InferRequest", "SERVER"))
                ]
                assert len(ours) == len(theirs) == 1
                return theirs[0].parent_id == ours[0].span_id and theirs[0].service == "triton"

            for page in pages:
                await mesh.whole(page["trace_id"], joined)
