"""The ranker follows the model registry: promotions, rollbacks, shadows, and what is broken."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from feed.v1.ranker_pb2 import RankCandidatesResponse
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.registry import REGISTRY

from mesh import telemetry
from mesh.channels import call
from ranker_svc.features import DENSE
from ranker_svc.scorers.contract import Contract
from ranker_svc.service import server
from ranker_svc.shadow import Scores, top_overlap
from stores.registry.folder import FolderRegistry
from stores.registry.port import State
from tests.eventually import eventually
from tests.fixtures.models import add_broken, add_linear, put, save_linear_model
from tests.fixtures.spans import attribute, service
from tests.fixtures.sql import fresh_ids
from tests.fixtures.valkey import free_port
from tests.services.conftest import Serve
from tests.services.test_ranker import request_for

if TYPE_CHECKING:
    from feed.v1.ranker_pb2_grpc import RankerServiceAsyncStub

# What every candidate of `request_for` has: 1 in this column.
ALL = "source_social"
EVERY_S = 0.05


@pytest.fixture
def registry(tmp_path: Path) -> FolderRegistry:
    return FolderRegistry(tmp_path / "registry")


@asynccontextmanager
async def ranking(
    serve: Serve, registry: FolderRegistry, model_url: str = "onnx://"
) -> AsyncIterator["RankerServiceAsyncStub"]:
    url = f"file://{registry.root}"
    async with serve(server, registry_url=url, model_url=model_url) as channel:
        yield RankerServiceStub(channel)


async def ask(stub: "RankerServiceAsyncStub", count: int = 2) -> RankCandidatesResponse:
    request = request_for(fresh_ids(count), fresh_ids(count))
    return await call(stub.RankCandidates, request, timeout=5)


async def until_ranked_by(stub: "RankerServiceAsyncStub", version: str) -> None:
    async def answered() -> bool:
        return (await ask(stub)).model_version == version

    await eventually(answered)


async def test_the_heuristic_ranks_until_a_version_is_promoted(
    serve: Serve, registry: FolderRegistry
) -> None:
    async with ranking(serve, registry) as stub:
        answer = await ask(stub)
        assert (answer.model_version, list(answer.degraded)) == ("heuristic/1", [])
        put(registry, State(promoted=add_linear(registry, {ALL: 0.25})))
        await until_ranked_by(stub, "onnx/1")
        assert list((await ask(stub)).scores) == [0.25, 0.25]


async def test_a_ranker_starts_with_what_was_promoted_before(
    serve: Serve, registry: FolderRegistry
) -> None:
    put(registry, State(promoted=add_linear(registry, {ALL: 0.25})))
    async with ranking(serve, registry) as stub:
        assert (await ask(stub)).model_version == "onnx/1"


async def test_no_request_fails_while_versions_are_promoted_shadowed_and_rolled_back(
    serve: Serve, registry: FolderRegistry, spans: InMemorySpanExporter
) -> None:
    """Twenty requests a second all the while."""
    first, second = add_linear(registry, {ALL: 0.25}), add_linear(registry, {ALL: 0.75})
    put(registry, State(first))
    asking: list[asyncio.Task[RankCandidatesResponse]] = []

    def newest() -> str:
        done = [task for task in asking if task.done()]
        return done[-1].result().model_version if done else ""

    async def ask_forever(stub: "RankerServiceAsyncStub") -> None:
        while True:
            asking.append(asyncio.create_task(ask(stub)))
            await asyncio.sleep(EVERY_S)

    async with ranking(serve, registry) as stub:
        forever = asyncio.create_task(ask_forever(stub))
        await eventually(lambda: newest() == "onnx/1")
        put(registry, State(first, shadow=second, shadow_share=1.0))
        await eventually(lambda: len(named(spans, "score shadow")) >= 3)
        put(registry, State(second, earlier=(first,)))
        await eventually(lambda: newest() == "onnx/2")
        put(registry, State(first))
        await eventually(lambda: newest() == "onnx/1")
        forever.cancel()
        answers = await asyncio.gather(*asking)
    assert [answer for answer in answers if answer.degraded] == []
    scores = {"onnx/1": 0.25, "onnx/2": 0.75}
    assert [a.scores[0] for a in answers] == [scores[a.model_version] for a in answers]
    assert changes([answer.model_version for answer in answers]) == ["onnx/1", "onnx/2", "onnx/1"]
    told = [attribute(span, "feed.model.version") for span in named(spans, "score candidates")]
    assert sorted(map(str, told)) == sorted(answer.model_version for answer in answers)


def changes(versions: Sequence[str]) -> list[str]:
    return [v for v, before in zip(versions, ["", *versions], strict=False) if v != before]


def named(spans: InMemorySpanExporter, name: str) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name == name]


async def test_a_version_that_does_not_load_leaves_the_one_before(
    serve: Serve, registry: FolderRegistry
) -> None:
    put(registry, State(add_linear(registry, {ALL: 0.25})))
    failed = counted("model_loads_total", "failed")
    before = failed()
    async with ranking(serve, registry) as stub:
        put(registry, State(add_broken(registry)))
        await eventually(lambda: failed() == before + 1)
        answer = await ask(stub)
        assert (answer.model_version, list(answer.degraded)) == ("onnx/1", [])
        put(registry, State(add_linear(registry, {ALL: 0.5})))
        await until_ranked_by(stub, "onnx/3")


async def test_a_version_that_loads_and_does_not_run_leaves_the_one_before(
    serve: Serve, registry: FolderRegistry
) -> None:
    put(registry, State(add_linear(registry, {ALL: 0.25})))
    failed = counted("model_loads_total", "failed")
    before = failed()
    async with ranking(serve, registry) as stub:
        # Of a column less than its contract says.
        with registry.adding() as (number, folder):
            metadata = Contract(str(number), DENSE[1:]).metadata()
            save_linear_model(folder / "model.onnx", {}, metadata=metadata)
            (folder / "card.json").write_text("{}")
        put(registry, State(number))
        await eventually(lambda: failed() == before + 1)
        assert (await ask(stub)).model_version == "onnx/1"
        put(registry, State(add_linear(registry, {ALL: 0.5})))
        await until_ranked_by(stub, "onnx/3")


async def test_a_shadow_that_does_not_load_stands_in_no_promotions_way(
    serve: Serve, registry: FolderRegistry
) -> None:
    promoted = add_linear(registry, {ALL: 0.25})
    put(registry, State(promoted, shadow=add_broken(registry), shadow_share=1.0))
    async with ranking(serve, registry) as stub:
        answer = await ask(stub)
        assert (answer.model_version, list(answer.degraded)) == ("onnx/1", [])


async def test_a_ranker_that_starts_with_a_broken_version_says_so_on_every_page(
    serve: Serve, registry: FolderRegistry
) -> None:
    put(registry, State(add_broken(registry)))
    async with ranking(serve, registry) as stub:
        answer = await ask(stub)
        assert (answer.model_version, list(answer.degraded)) == ("heuristic/1", ["model"])
        put(registry, State(add_linear(registry, {ALL: 0.5})))
        await until_ranked_by(stub, "onnx/2")


async def test_while_triton_is_away_the_promoted_version_ranks_in_process(
    serve: Serve, registry: FolderRegistry
) -> None:
    url = f"triton://127.0.0.1:{free_port()}/ranker"
    async with ranking(serve, registry, url) as stub:
        answer = await ask(stub)
        assert (answer.model_version, list(answer.degraded)) == ("heuristic/1", ["model"])
        put(registry, State(add_linear(registry, {ALL: 0.25})))
        await until_ranked_by(stub, "onnx/1")
        answer = await ask(stub)
        assert (list(answer.scores), list(answer.degraded)) == ([0.25, 0.25], ["model"])


async def test_a_shadow_scores_in_a_trace_of_its_own_and_changes_no_answer(
    serve: Serve, registry: FolderRegistry, spans: InMemorySpanExporter
) -> None:
    first, second = add_linear(registry, {ALL: 0.25}), add_linear(registry, {ALL: 0.75})
    put(registry, State(first, shadow=second, shadow_share=1.0))
    scored = counted("shadow_scored_total", "ok")
    before = scored()
    async with ranking(serve, registry) as stub:
        with telemetry.span("the reader's request") as root:
            answer = await ask(stub, count=30)
        await eventually(lambda: scored() == before + 1)
    assert (answer.model_version, list(answer.scores)) == ("onnx/1", [0.25] * 30)
    (shadow,) = (s for s in spans.get_finished_spans() if s.name == "score shadow")
    assert shadow.parent is None
    assert [link.context.trace_id for link in shadow.links] == [root.get_span_context().trace_id]
    assert service(shadow) == "ranker_svc"
    assert attribute(shadow, "feed.model.version") == "onnx/1"
    assert attribute(shadow, "feed.shadow.version") == "onnx/2"
    assert attribute(shadow, "feed.shadow.difference") == pytest.approx(0.5)
    assert attribute(shadow, "feed.shadow.overlap") == 1.0


async def test_a_shadow_without_a_share_scores_nothing(
    serve: Serve, registry: FolderRegistry, spans: InMemorySpanExporter
) -> None:
    put(registry, State(add_linear(registry, {}), shadow=1, shadow_share=0.0))
    async with ranking(serve, registry) as stub:
        for _ in range(5):
            await ask(stub)
    assert named(spans, "score shadow") == []


def counted(name: str, outcome: str) -> Callable[[], float]:
    return lambda: REGISTRY.get_sample_value(name, {"outcome": outcome}) or 0


_SCORES = arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(0, 1, width=32))


@given(_SCORES)
def test_a_model_has_its_own_best_in_common_with_itself(scores: Scores) -> None:
    assert top_overlap(scores, scores) == 1


def test_the_overlap_is_the_share_of_the_best_that_both_name() -> None:
    ascending = np.arange(40, dtype=np.float32)
    assert top_overlap(ascending, -ascending) == 0
    assert top_overlap(ascending, np.roll(ascending, 5)) == 0.75
