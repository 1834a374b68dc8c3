"""`make run-stack`, used: services of their own, and traces that reach into every real server."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any
from uuid import uuid4

import psutil
import pytest

from cli.trace_rules import violations
from mesh import otlp
from mesh.otlp import Span
from mesh.settings import Settings
from stack.run import processes
from tests.eventually import eventually
from tests.fixtures.installation import StackInstallation
from tests.fixtures.stack import Stack
from tests.fixtures.world import Person

pytestmark = [pytest.mark.alone, pytest.mark.timeout(600)]

SERVICES = {"gateway", "candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc"}
# Of a feed of somebody with a taste.
BACKENDS = {"mysql", "redis", "pinot", "triton", "vectors", "feast"}
# What a post sets off, and where it ends: in mailboxes and in the vector index.
EFFECTS = {"fanout", "embedding"}


@pytest.fixture(scope="module")
async def mesh(stack: Stack) -> AsyncIterator[StackInstallation]:
    """With the demo world."""
    urls = await stack.environment()
    mesh = StackInstallation(Settings().data_dir.resolve(), **urls, FEED_DEMO="true")
    await mesh.start()
    yield mesh
    await mesh.stop()


@pytest.fixture(scope="module")
async def reader(mesh: StackInstallation) -> Person:
    return await mesh.demo_reader()


async def whole(
    mesh: StackInstallation,
    trace_id: str,
    complete: Callable[[Sequence[Span]], object] = bool,
) -> list[Span]:
    """The trace, when it breaks no rule and `complete` holds."""

    async def found() -> list[Span]:
        answer = await mesh.client.get(f"/debug/traces/{trace_id}")
        assert answer.status_code == 200, answer.text
        spans = otlp.read(otlp.from_json(answer.json()))
        assert not violations(spans)
        assert complete(spans)
        return spans

    return await eventually(found, within_s=60, every_s=0.2)


def backend(span: Span) -> str | None:
    """The backend that a CLIENT span calls."""
    if span.kind != "CLIENT":
        return None
    if span.name.startswith("edge.v1."):
        return "vectors"
    if span.name.startswith("inference."):
        return "triton"
    if "feed.features.view" in span.attributes:
        return "feast"
    return span.attributes.get("db.system.name")


async def test_each_service_and_each_worker_is_a_process_of_its_own(
    mesh: StackInstallation,
) -> None:
    launcher = psutil.Process(mesh.pids()["launcher"])
    commands = [" ".join(each.cmdline()) for each in launcher.children()]
    assert len(commands) == len(processes(mesh.settings))
    for service in SERVICES - {"gateway"}:
        assert sum(command.endswith(f"-m {service}") for command in commands) == 1


async def test_a_feed_is_whole_and_its_trace_reaches_every_server(
    mesh: StackInstallation, reader: Person
) -> None:
    async def undegraded() -> dict[str, Any]:
        page = await mesh.feed(reader)
        assert page["degraded"] == []
        return page

    page = await eventually(undegraded, within_s=60, every_s=0.2)
    assert len(page["items"]) == 20
    assert {item["source"] for item in page["items"]} >= {"social", "discovery"}
    spans = await whole(mesh, page["trace_id"])
    assert {span.service for span in spans} >= SERVICES
    assert {backend(span) for span in spans} - {None} >= BACKENDS


async def test_a_post_goes_through_kafka_to_its_effects_in_one_trace(
    mesh: StackInstallation, reader: Person
) -> None:
    author = await mesh.sign_up(f"author{uuid4().hex[:8]}")
    follow = await mesh.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    assert follow.status_code == 204
    answer = await mesh.client.post(
        "/post", json={"text": "by way of Kafka"}, headers=author.headers
    )
    assert answer.status_code == 201
    trace_id = answer.headers["traceresponse"].split("-")[1]

    def done(spans: Sequence[Span]) -> bool:
        groups = {span.attributes.get("messaging.consumer.group.name") for span in spans}
        return groups >= EFFECTS and "vectors" in {backend(span) for span in spans}

    spans = await whole(mesh, trace_id, done)
    [sent] = [span for span in spans if span.kind == "PRODUCER"]
    processed = [span for span in spans if span.kind == "CONSUMER"]
    assert {span.attributes["messaging.system"] for span in [sent, *processed]} == {"kafka"}
    assert {span.parent_id for span in processed} == {sent.span_id}


async def test_no_trace_of_many_at_once_breaks_a_rule(
    mesh: StackInstallation, reader: Person
) -> None:
    async def scroll(number: int) -> list[str]:
        author = await mesh.sign_up(f"many{number}x{uuid4().hex[:8]}")
        answers = []
        for _ in range(3):
            answers.append(await mesh.client.get("/feed", headers=reader.headers))
            answers.append(
                await mesh.client.post("/post", json={"text": "hello"}, headers=author.headers)
            )
            post_id = answers[-1].json()["post_id"]
            answers.append(await mesh.client.put(f"/post/{post_id}/like", headers=reader.headers))
        assert {answer.status_code for answer in answers} == {200, 201, 204}
        return [answer.headers["traceresponse"].split("-")[1] for answer in answers]

    trace_ids = [
        trace_id for ids in await asyncio.gather(*map(scroll, range(8))) for trace_id in ids
    ]
    assert len(set(trace_ids)) == 72
    for trace_id in trace_ids:
        await whole(mesh, trace_id)
