"""Metrics say what happened, and lead to the trace of it."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from feed.v1.candidate_pb2_grpc import CandidateServiceStub
from feed.v1.hydrator_pb2_grpc import HydratorServiceStub
from feed.v1.ranker_pb2_grpc import RankerServiceStub

from gateway.problems import ClientGone
from mesh import metrics
from mesh.channels import open_channel
from mesh.errors import NotFound, Unavailable
from mesh.metrics_table import declared, measured_in
from mesh.process import measure_loop_lag
from tests.eventually import eventually
from tests.exposition import Exposition
from tests.fixtures.world import Person, World
from tests.gateway.helpers import changed


async def read(world: World) -> Exposition:
    return Exposition((await world.client.get("/metrics")).text)


def read_here() -> Exposition:
    return Exposition(metrics.exposition().decode())


async def feed_in_trace(world: World, reader: Person, *, sampled: bool) -> str:
    """Asks for a feed within a new trace; returns its trace_id."""
    trace_id = secrets.token_hex(16)
    traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-0{int(sampled)}"
    answer = await world.client.get("/feed", headers={**reader.headers, "traceparent": traceparent})
    assert answer.status_code == 200, answer.text
    return trace_id


@pytest.fixture
async def follower(world: World) -> Person:
    """A reader with a post of a followed author in their feed."""
    author, reader = await world.sign_up("author"), await world.sign_up("reader")
    await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    post_id = await world.post(author, "chapter one")

    async def arrived() -> bool:
        return post_id in {item["post_id"] for item in (await world.feed(reader))["items"]}

    await eventually(arrived)
    return reader


@pytest.fixture
async def dead(world: World) -> AsyncIterator[Any]:
    """The gateway's services, with the named ones at a port where nobody listens."""
    stubs: dict[str, Any] = {
        "candidate": CandidateServiceStub,
        "hydrator": HydratorServiceStub,
        "ranker": RankerServiceStub,
    }
    async with open_channel("127.0.0.1:9") as channel:

        def services(name: str) -> Any:
            return replace(world.app.state.backends.services, **{name: stubs[name](channel)})

        yield services


async def test_a_sampled_request_leaves_its_trace_in_every_latency_histogram(
    world: World, follower: Person
) -> None:
    async def every_one() -> bool:
        # Again when the workers measured something of their own meanwhile.
        before = await read(world)
        trace_id = await feed_in_trace(world, follower, sampled=True)
        after = await read(world)
        grown = {name for name in after.grown(before) if name.endswith("_seconds")}
        assert {
            "feed_latency_seconds",
            "http_server_request_duration_seconds",
            "rpc_client_call_duration_seconds",
            "rpc_server_call_duration_seconds",
        } <= grown
        without = {name for name in grown if trace_id not in after.exemplars[name]}
        assert without == set()
        return True

    await eventually(every_one)


async def test_an_unsampled_request_leaves_none(world: World, follower: Person) -> None:
    before = await read(world)
    trace_id = await feed_in_trace(world, follower, sampled=False)
    after = await read(world)
    assert "feed_latency_seconds" in after.grown(before)
    assert {name for name, ids in after.exemplars.items() if trace_id in ids} == set()


async def test_a_degraded_page_is_counted_and_leads_to_its_trace(
    world: World, follower: Person, dead: Any
) -> None:
    before = await read(world)
    with changed(world, services=dead("ranker")):
        trace_id = await feed_in_trace(world, follower, sampled=True)
    after = await read(world)
    total = {"stage": "total", "outcome": "degraded"}
    for name, labels in (
        ("feed_latency_seconds_count", total),
        ("feed_latency_seconds_count", {"stage": "ranker", "outcome": "error"}),
        ("feed_degraded_total", {"backend": "ranker"}),
    ):
        assert after.value(name, labels) == before.value(name, labels) + 1
    assert trace_id in after.exemplars["feed_degraded"]


async def test_how_feeds_end_is_told_apart(world: World, follower: Person, dead: Any) -> None:
    async def ended(outcome: str) -> float:
        labels = {"stage": "total", "outcome": outcome}
        return (await read(world)).value("feed_latency_seconds_count", labels)

    before = await ended("rejected")
    await world.client.get("/feed?cursor=made-up", headers=follower.headers)
    assert await ended("rejected") == before + 1

    before = await ended("error")
    with changed(world, services=dead("hydrator")):
        answer = await world.client.get("/feed", headers=follower.headers)
    assert answer.status_code == 503
    assert await ended("error") == before + 1


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (NotFound("no such cursor"), "rejected"),
        (ClientGone("left"), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (Unavailable("away"), "error"),
        (TimeoutError(), "error"),
        (ValueError("a bug"), "error"),
    ],
)
def test_an_exception_decides_the_outcome_of_a_stage(error: BaseException, outcome: str) -> None:
    labels = {"stage": "tried", "outcome": outcome, "source": ""}
    before = read_here().value("feed_latency_seconds_count", labels)
    with pytest.raises(type(error)), metrics.feed_stage("tried"):
        raise error
    assert read_here().value("feed_latency_seconds_count", labels) == before + 1


async def test_retrieval_is_timed_by_the_source_that_gave_the_candidates(
    world: World, follower: Person
) -> None:
    async def timed(stage: str, source: str) -> float:
        labels = {"stage": stage, "source": source, "outcome": "ok"}
        return (await read(world)).value("feed_latency_seconds_count", labels)

    social, nobodys = await timed("social", "social"), await timed("social", "none")
    await world.feed(follower)
    assert await timed("social", "social") == social + 1
    await world.feed(await world.sign_up("newcomer"))
    assert await timed("social", "none") == nobodys + 1
    # Only retrieval has sources.
    sources = {
        dict(labels)["source"]
        for name, labels in (await read(world)).values
        if name == "feed_latency_seconds_count"
        if dict(labels)["stage"] not in ("social", "discovery")
    }
    assert sources == {""}


async def test_every_candidate_is_counted_with_a_verdict(world: World, follower: Person) -> None:
    before = await read(world)
    await world.feed(follower)
    after = await read(world)
    candidates = after.value("feed_candidates_total") - before.value("feed_candidates_total")
    verdicts = after.value("feed_verdicts_total") - before.value("feed_verdicts_total")
    assert candidates == verdicts > 0
    kept = {"verdict": "kept"}
    assert after.value("feed_verdicts_total", kept) > before.value("feed_verdicts_total", kept)


async def test_a_requests_method_route_status_and_failure_are_on_its_time(
    world: World, follower: Person, dead: Any
) -> None:
    name = "http_server_request_duration_seconds_count"
    fine = {
        "http_request_method": "GET",
        "url_scheme": "http",
        "http_route": "/feed",
        "http_response_status_code": "200",
        "error_type": "",
    }
    failed = {**fine, "http_response_status_code": "503", "error_type": "503"}
    before = await read(world)
    await world.feed(follower)
    with changed(world, services=dead("hydrator")):
        await world.client.get("/feed", headers=follower.headers)
    after = await read(world)
    assert after.value(name, fine) == before.value(name, fine) + 1
    assert after.value(name, failed) == before.value(name, failed) + 1


async def test_requests_in_flight_are_counted_while_they_are(world: World) -> None:
    labels = {"http_request_method": "GET", "url_scheme": "http"}
    # The request that reads is in flight itself.
    assert (await read(world)).value("http_server_active_requests", labels) == 1
    assert read_here().value("http_server_active_requests", labels) == 0


async def test_a_blocked_loop_is_seen() -> None:
    before = read_here()
    watching = asyncio.create_task(measure_loop_lag(every_s=0.001))
    await asyncio.sleep(0)
    blocked_s = 0.05
    end = time.perf_counter() + blocked_s
    while time.perf_counter() < end:
        pass

    def observed() -> bool:
        return "event_loop_lag_seconds" in read_here().grown(before)

    await eventually(observed, every_s=0)
    watching.cancel()
    name = "event_loop_lag_seconds_sum"
    assert read_here().value(name) - before.value(name) > blocked_s / 2


def test_every_metric_is_measured_somewhere() -> None:
    assert declared().keys() - measured_in().keys() == set()
