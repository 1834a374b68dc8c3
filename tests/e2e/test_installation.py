"""What `make run` starts, used as the README tells its three kinds of user to."""

import asyncio
import importlib.metadata
import itertools
import json
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from rich.progress import Progress

from local.demo.load import load
from local.demo.world import DEMO_TASTES, DEMO_USERNAME
from stores.connect import Connections
from stores.mailboxes.timelines import Timelines
from tests.exposition import Exposition
from tests.fixtures.installation import ROOT, Installation

SERVICES = {
    "candidate": "feed.v1.CandidateService",
    "filter": "feed.v1.FilterService",
    "ranker": "feed.v1.RankerService",
    "hydrator": "feed.v1.HydratorService",
}
READER = {"reader": {"user_id": "42"}}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "candidate": ("GetCandidates", {**READER, "strategy": "RETRIEVAL_STRATEGY_DISCOVERY"}),
    "filter": ("ListSeen", {"reader_id": "42"}),
    "ranker": ("RankCandidates", {**READER, "candidates": {}}),
    "hydrator": ("HydratePosts", {"post_ids": ["42"], "limit": 1}),
}


@pytest.fixture(scope="module")
async def demo(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Installation]:
    """With the demo world."""
    folder = tmp_path_factory.mktemp("demo") / "data"
    installation = Installation(
        folder,
        FEED_DEMO="true",
        # The machine may be busy, and no test here is about how fast it is.
        FEED_FEED_DEADLINE_S="45",
    )
    await installation.start()
    yield installation
    await installation.stop()


async def test_the_demo_world_is_loaded_once_and_has_what_one_looks_for(
    demo: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Connections(demo.settings) as stores:
        me = await stores.users().credentials(DEMO_USERNAME)
        assert me is not None
        assert me.password_hash is not None
        around = await stores.graph().neighborhood(me.user.user_id)
        assert 20 <= len(around.following) <= 30
        newest = await Timelines(stores.mailboxes(), stores.posts()).recent_by_authors(
            around.following, 100
        )
        assert sum(map(len, newest.values())) > 60
        posts = await stores.posts().page(0, 1000)
        assert len(posts) == 600
        pictured = [post for post in posts if post.media]
        data, content_type = await stores.media().get(pictured[0].media[0].key)
        assert (content_type, data[:2]) == ("image/jpeg", b"\xff\xd8")

        taste = (await stores.features().user(me.user.user_id)).interest_vector
        assert taste is not None
        vectors = await stores.vectors().retrieve([post.post_id for post in posts])
        close = sorted(posts, key=lambda post: -float(vectors[post.post_id] @ taste))[:30]
        assert sum(post.tags[0] in DEMO_TASTES for post in close) > 15

        def never(*_: object) -> None:
            raise AssertionError("it was loaded before")

        monkeypatch.setattr(Progress, "add_task", never)
        await load(stores, demo.settings, Progress(disable=True))


async def test_the_demo_readers_first_feed_is_full_blended_and_whole(demo: Installation) -> None:
    page = await demo.feed(await demo.demo_reader())
    assert len(page["items"]) == 20
    assert page["degraded"] == []
    assert {"social", "discovery"} <= {item["source"] for item in page["items"]}
    authors = [item["author"]["user_id"] for item in page["items"]]
    assert max(authors.count(author) for author in authors) <= 2
    assert all(one != next_one for one, next_one in itertools.pairwise(authors))
    images = [media["url"] for item in page["items"] for media in item["media"]]
    assert images
    assert (await demo.client.get(images[0])).headers["content-type"].startswith("image/")


async def test_two_hundred_feeds_at_concurrency_sixteen_give_no_error(demo: Installation) -> None:
    reader = await demo.demo_reader()
    todo = iter(range(200))

    async def scroll() -> None:
        for _ in todo:
            page = await demo.feed(reader)
            # A machine that has other work, too, may be late; then the page says so.
            assert len(page["items"]) == 20 or page["degraded"]

    await asyncio.gather(*(scroll() for _ in range(16)))


async def test_every_process_tells_what_it_is_and_how_it_does(demo: Installation) -> None:
    first = int(demo.env["FEED_METRICS_PORT"])
    urls = {
        "gateway": f"{demo.url}/metrics",
        "workers": f"http://127.0.0.1:{first}/metrics",
        "vectors": f"http://127.0.0.1:{first + 1}/metrics",
    }
    for service, url in urls.items():
        answer = await demo.client.get(url, headers={"Accept": "application/openmetrics-text"})
        read = Exposition(answer.text)
        version = importlib.metadata.version("feedmesh")
        assert read.value("feedmesh_info", {"service": service, "version": version}) == 1
        assert read.value("event_loop_lag_seconds_count") > 0
        if sys.platform == "linux":
            assert read.value("process_cpu_seconds_total") > 0
            assert read.value("process_resident_memory_bytes") > 0
            assert read.value("process_open_fds") > 0


@pytest.mark.parametrize("service", SERVICES)
async def test_every_service_can_be_listed_and_called_by_reflection_alone(
    demo: Installation, service: str
) -> None:
    """What grpcurl does: nothing is known but the port."""
    address = demo.env[f"FEED_{service.upper()}_ADDRESS"]
    async with grpc.aio.insecure_channel(address) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)  # type: ignore[arg-type]

        async def ask(**request: Any) -> Any:
            async for answer in stub.ServerReflectionInfo(
                iter([reflection_pb2.ServerReflectionRequest(**request)])
            ):
                return answer
            raise AssertionError("no answer")

        listed = await ask(list_services="")
        names = {each.name for each in listed.list_services_response.service}
        assert {SERVICES[service], "grpc.health.v1.Health"} <= names

        pool = descriptor_pool.DescriptorPool()
        files = {}
        waiting = (await ask(file_containing_symbol=SERVICES[service])).file_descriptor_response
        for data in waiting.file_descriptor_proto:
            file = descriptor_pb2.FileDescriptorProto.FromString(data)
            files[file.name] = file
        added: set[str] = set()

        async def add(name: str) -> None:
            if name in added:
                return
            if name not in files:
                answer = await ask(file_by_filename=name)
                files[name] = descriptor_pb2.FileDescriptorProto.FromString(
                    answer.file_descriptor_response.file_descriptor_proto[0]
                )
            for needed in files[name].dependency:
                await add(needed)
            pool.Add(files[name])
            added.add(name)

        for name in list(files):
            await add(name)
        method_name, body = CALLS[service]
        method = pool.FindServiceByName(SERVICES[service]).methods_by_name[method_name]
        request = json_format.ParseDict(
            body, message_factory.GetMessageClass(method.input_type)(), descriptor_pool=pool
        )
        call: Any = channel.unary_unary(
            f"/{SERVICES[service]}/{method_name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
        )
        answer = await call(request, timeout=5)
        assert answer.DESCRIPTOR.full_name.endswith(f"{method_name}Response")

        health: Any = health_pb2_grpc.HealthStub(channel)
        for name in ("", SERVICES[service]):
            status = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert status.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_client_on_the_stubs_wheel_alone_gets_candidates(
    demo: Installation, tmp_path: Path
) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path,
         ROOT / "stubs"],
        check=True, capture_output=True,
    )  # fmt: skip
    [wheel] = tmp_path.glob("feedmesh_stubs-*.whl")
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    assert not (site / "edge").exists(), "the internal contract is not for other teams"
    program = f"""
import json, sys
import grpc
from feed.v1 import candidate_pb2, candidate_pb2_grpc, common_pb2
assert candidate_pb2.__file__.startswith({str(site)!r}), candidate_pb2.__file__
with grpc.insecure_channel({demo.env["FEED_CANDIDATE_ADDRESS"]!r}) as channel:
    answer = candidate_pb2_grpc.CandidateServiceStub(channel).GetCandidates(
        candidate_pb2.GetCandidatesRequest(
            reader=common_pb2.Reader(user_id=42),
            strategy=candidate_pb2.RETRIEVAL_STRATEGY_DISCOVERY,
        ),
        timeout=5,
    )
print(json.dumps([len(answer.candidates.post_ids), "mesh" in sys.modules]))
"""
    client = await asyncio.create_subprocess_exec(
        sys.executable, "-c", program, cwd=tmp_path, env={"PYTHONPATH": str(site)},
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    output, _ = await client.communicate()
    candidates, has_mesh = json.loads(output)
    assert candidates > 0
    assert not has_mesh


async def test_a_second_start_says_clearly_that_the_first_one_runs(demo: Installation) -> None:
    second = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "local", cwd=ROOT, env={**demo.env, "PATH": ""},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, message = await second.communicate()
    assert second.returncode == 1
    assert b"running already" in message


async def test_a_taken_port_is_named_with_its_setting(demo: Installation, tmp_path: Path) -> None:
    env = {**demo.env, "FEED_DATA_DIR": str(tmp_path), "PATH": ""}
    other = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "local", cwd=ROOT, env=env, stderr=asyncio.subprocess.PIPE
    )
    _, message = await other.communicate()
    assert other.returncode == 1
    assert b"FEED_GATEWAY_PORT" in message


async def test_sigterm_stops_everything_and_a_restart_keeps_the_data(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    installation = Installation(tmp_path_factory.mktemp("restart") / "data")
    await installation.start()
    author = await installation.sign_up("keeper")
    answer = await installation.client.post(
        "/post", json={"text": "still here tomorrow"}, headers=author.headers
    )
    pids = installation.pids()
    assert await installation.stop() == 0
    assert not [pid for pid in pids.values() if Path(f"/proc/{pid}").exists()]

    await installation.start()
    post_id = answer.json()["post_id"]
    again = await installation.client.get(f"/post/{post_id}", headers=author.headers)
    assert again.status_code == 200
    assert again.json()["text"] == "still here tomorrow"
    await installation.stop()
