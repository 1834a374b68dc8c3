"""Versions of a model in a real Triton: one is added while another serves, and then promoted."""

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from numpy.typing import NDArray
from onnx import load_model, save_model
from typer.testing import CliRunner, Result

from cli.main import app
from mesh.breaker import Breaker
from mesh.channels import call, open_channel
from mesh.errors import FeedError
from mesh.settings import Settings
from ranker_svc.features import CATEGORICAL, DENSE, Features
from ranker_svc.scorers.contract import Contract, Field
from ranker_svc.scorers.onnx import OnnxScorer
from ranker_svc.scorers.triton import TritonScorer
from ranker_svc.service import server
from stack.place import Place
from stack.triton import repository
from stack.triton.install import install
from stack.triton.loading import Served
from stack.triton.server import MODEL, Triton, serves
from stores.registry.folder import CARD, FolderRegistry
from stores.registry.folder import MODEL as MODEL_FILE
from stores.registry.port import State
from tests.eventually import eventually
from tests.fixtures.cards import good_card
from tests.fixtures.models import save_model_of_ids
from tests.fixtures.scorers import open_scorer
from tests.fixtures.sql import fresh_ids
from tests.fixtures.valkey import free_port
from tests.services.conftest import Serve
from tests.services.test_ranker import request_for
from tests.services.test_triton_scorer import some_features

pytestmark = pytest.mark.stack

# Each version takes other columns, and so many of them.
CONTRACTS = {
    1: Contract("one", ("affinity", "age_hours")),
    2: Contract("two", ("has_media", "affinity", "source_social"), (Field("author", 50),)),
    3: Contract("three", DENSE, tuple(Field(name, 20 + i) for i, name in enumerate(CATEGORICAL))),
    4: Contract("four", ("age_hours",), (Field("reader", 9), Field("topic", 9))),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Files by number; what they call their scores differs, too."""
    folder = tmp_path_factory.mktemp("models")
    files = {number: folder / f"{number}.onnx" for number in CONTRACTS}
    for number, file in files.items():
        save_model_of_ids(file, CONTRACTS[number], output=f"output_{number}")
    return files


@pytest.fixture
def registry(tmp_path: Path, models: dict[int, Path]) -> FolderRegistry:
    made = FolderRegistry(tmp_path / "registry")
    for model in models.values():
        with made.adding() as (_, folder):
            (folder / MODEL_FILE).write_bytes(model.read_bytes())
            (folder / CARD).write_text(json.dumps(good_card()))
    return made


@asynccontextmanager
async def running(models: dict[int, Path], folder: Path) -> AsyncIterator[tuple[Triton, Served]]:
    """A Triton with these versions, and how it is given others."""
    async with asyncio.timeout(600):
        installation = await install(Place.of(Settings()).cache)
    triton = Triton(installation, models, folder, free_port())
    await triton.start()
    try:
        yield triton, Served.at(triton.url, folder / "models")
    finally:
        await triton.stop()


@asynccontextmanager
async def scorer_of(triton: Triton, number: int) -> AsyncIterator[TritonScorer]:
    async with open_channel(triton.url.split("/")[2], is_ours=False) as channel:
        yield TritonScorer(channel, MODEL, str(number), Breaker("model"))


async def here(model: Path, features: Features) -> NDArray[np.float32]:
    return await OnnxScorer(model).score(features)


@asynccontextmanager
async def asked_all_the_while(triton: Triton, number: int) -> AsyncIterator[list[str]]:
    """Asks for this version 20 times a second during the block; gives "ok", or what failed."""
    answers: list[str] = []
    ended = asyncio.Event()

    async def ask(scorer: TritonScorer) -> None:
        try:
            await scorer.score(some_features(150))
            answers.append("ok")
        except FeedError as error:
            answers.append(repr(error))

    async with scorer_of(triton, number) as scorer, asyncio.TaskGroup() as group:

        async def ask_on() -> None:
            while not ended.is_set():
                group.create_task(ask(scorer))
                await asyncio.sleep(0.05)

        await scorer.score(some_features(150))
        group.create_task(ask_on())
        try:
            yield answers
        finally:
            ended.set()


def unknown_ids(rows: int = 150) -> Features:
    """Half of the rows without any id, half with ids that nobody has been given."""
    chance = np.random.default_rng(5)
    ids = chance.integers(2**61, 2**62, (rows, len(CATEGORICAL)))
    ids[: rows // 2] = 0
    return Features(chance.random((rows, len(DENSE)), np.float32), ids)


async def test_a_version_is_added_while_another_serves_and_no_request_fails(
    models: dict[int, Path], tmp_path: Path
) -> None:
    features = some_features(150)
    async with (
        running({1: models[1]}, tmp_path) as (triton, served),
        asked_all_the_while(triton, 1) as answers,
    ):
        for number in (2, 3):
            await served.serve(number, models[number], kept=[number, 1])
            async with scorer_of(triton, number) as scorer:
                scores = await scorer.score(features)
                assert scorer.version == f"triton/{MODEL}/{CONTRACTS[number].version}"
            np.testing.assert_allclose(scores, await here(models[number], features), atol=1e-5)
            assert np.ptp(scores - await here(models[1], features)) > 0.01, "another model"
        asked = len(answers)
        await eventually(lambda: len(answers) > 20)
    print(f"{asked} requests while 2 versions were added")
    assert set(answers) == {"ok"}


async def test_each_version_has_its_own_contract_and_the_same_scores_as_here(
    models: dict[int, Path], tmp_path: Path
) -> None:
    async with running({n: models[n] for n in (1, 2, 3)}, tmp_path) as (triton, _):
        for number in (1, 2, 3):
            async with (
                open_scorer(f"{triton.url}?version={number}") as there,
                open_scorer(f"onnx://{models[number]}") as local,
            ):
                for features in (some_features(150), some_features(1), unknown_ids()):
                    scores = await there.score(features)
                    np.testing.assert_allclose(scores, await local.score(features), atol=1e-5)
                    assert np.isfinite(scores).all()
        async with open_scorer(triton.url) as scorer:
            features = some_features(9)
            scores = await scorer.score(features)
            assert scorer.version.endswith("three"), "the highest number, where none is asked for"
        np.testing.assert_allclose(scores, await here(models[3], features), atol=1e-5)


async def test_a_version_that_does_not_load_leaves_those_that_serve(
    models: dict[int, Path], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.onnx"
    save_model_of_ids(broken, CONTRACTS[2])
    # A file of ONNX, but onnxruntime has no such operator.
    model = load_model(broken)
    model.graph.node[0].op_type = "Sorcery"
    save_model(model, broken)
    async with (
        running({1: models[1]}, tmp_path / "triton") as (triton, served),
        asked_all_the_while(triton, 1) as answers,
    ):
        with pytest.raises(FeedError, match="Sorcery"):
            await served.serve(2, broken, kept=[2, 1])
        assert repository.numbers(served.folder, MODEL) == [1]
        await served.serve(3, models[3], kept=[3, 1])
        async with scorer_of(triton, 3) as scorer:
            await scorer.score(some_features())
    assert set(answers) == {"ok"}


def model(registry: FolderRegistry, *arguments: object, **env: str) -> Result:
    env |= {"FEED_REGISTRY_URL": f"file://{registry.root}"}
    return CliRunner().invoke(app, ["model", *map(str, arguments)], env=env)


async def test_promotions_and_rollbacks_are_served_by_triton_before_they_count(
    registry: FolderRegistry, models: dict[int, Path], tmp_path: Path
) -> None:
    async with running({1: models[1]}, tmp_path / "triton") as (triton, served):
        env = {"FEED_MODEL_URL": triton.url, "FEED_TRITON_REPOSITORY": str(served.folder)}

        async def run(*arguments: object) -> None:
            answer = await asyncio.to_thread(model, registry, *arguments, **env)
            assert answer.exit_code == 0, answer.stderr
            promoted = registry.state().promoted
            assert promoted is not None
            async with scorer_of(triton, promoted) as scorer:
                await scorer.score(some_features())

        for number in (1, 2, 3, 4):
            await run("promote", number)
        assert registry.state() == State(4, (3, 2, 1))
        assert repository.numbers(served.folder, MODEL) == [2, 3, 4]
        for _ in range(3):
            await run("rollback")
        assert registry.state() == State(1)
        await triton.stop()
        answer = await asyncio.to_thread(model, registry, "promote", 2, **env)
        assert answer.exit_code == 1
        assert registry.state() == State(1)
        assert repository.numbers(served.folder, MODEL) == [1]


@asynccontextmanager
async def make_triton(registry: FolderRegistry, folder: Path) -> AsyncIterator[dict[str, str]]:
    """What `make triton` runs, on this registry; gives the settings of who uses it."""
    port = free_port()
    env = {
        "FEED_REGISTRY_URL": f"file://{registry.root}",
        "FEED_DATA_DIR": str(folder),
        "FEED_TRITON_REPOSITORY": str(folder / "repository"),
    }
    command = [sys.executable, "-m", "stack.triton", "--port", str(port)]
    process = await asyncio.create_subprocess_exec(*command, env={**os.environ, **env})
    try:
        await eventually(lambda: serves(port), within_s=90)
        yield env | {"FEED_MODEL_URL": f"triton://127.0.0.1:{port}/{MODEL}"}
    finally:
        process.terminate()
        await process.wait()


async def test_no_feed_notices_that_a_version_is_promoted(
    registry: FolderRegistry, serve: Serve, tmp_path: Path
) -> None:
    request = request_for(fresh_ids(20), fresh_ids(20))
    seen: list[tuple[str, bool]] = []
    async with (
        make_triton(registry, tmp_path / "triton") as env,
        serve(
            server, model_url=env["FEED_MODEL_URL"], registry_url=env["FEED_REGISTRY_URL"]
        ) as channel,
    ):
        stub = RankerServiceStub(channel)

        async def rank_on() -> None:
            while True:
                answer = await call(stub.RankCandidates, request, timeout=5)
                seen.append((answer.model_version, "model" in answer.degraded))
                await asyncio.sleep(0.02)

        async def ranks_by(version: str) -> None:
            await eventually(lambda: seen[-1:] == [(version, False)], within_s=30)

        ranking = asyncio.create_task(rank_on())
        await ranks_by("triton/ranker/heuristic-1")
        # Before that, Triton's model may not have been asked yet.
        seen.clear()
        for arguments, name in [
            (("promote", 1), "one"),
            (("promote", 2), "two"),
            (("rollback",), "one"),
            (("promote", 3), "three"),
        ]:
            answer = await asyncio.to_thread(model, registry, *arguments, **env)
            assert answer.exit_code == 0, answer.stderr
            await ranks_by(f"triton/ranker/{name}")
        assert not ranking.done()
        ranking.cancel()
    print(f"{len(seen)} feeds were ranked meanwhile")
    assert [each for each in seen if each[1]] == []
    async with (
        make_triton(registry, tmp_path / "again") as env,
        open_scorer(f"{env['FEED_MODEL_URL']}?version=3") as scorer,
    ):
        await scorer.score(some_features())
        assert scorer.version == "triton/ranker/three", "a new one serves what is promoted"
