"""GET /debug/traces: the last traces of a gateway that keeps them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from gateway.app import create_app
from mesh import otlp
from tests.eventually import eventually
from tests.fixtures.world import World
from tests.gateway.helpers import changed

KEPT = 50


@pytest.fixture(scope="module")
async def gateway(world: World) -> AsyncIterator[World]:
    """Another gateway on the world's stores, which keeps some traces."""
    settings = world.settings.model_copy(update={"debug_traces": KEPT})
    app = create_app(settings, world.stores)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://feed.test",
        ) as client,
    ):
        yield replace(world, client=client, app=app)


async def ask(gateway: World, path: str, **query: Any) -> Any:
    answer = await gateway.client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def trace(gateway: World, trace_id: str) -> list[otlp.Span]:
    return otlp.read(otlp.from_json(await ask(gateway, f"/debug/traces/{trace_id}")))


def problem(answer: httpx.Response, status: int, name: str) -> dict[str, Any]:
    """Of a request that is not traced."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "traceresponse" not in answer.headers
    body: dict[str, Any] = answer.json()
    assert body["type"] == f"urn:feedmesh:problem:{name}"
    assert body["trace_id"] == ""
    return body


async def test_a_feeds_trace_is_given_whole(gateway: World, spans: InMemorySpanExporter) -> None:
    reader = await gateway.sign_up("watched")
    trace_id = (await gateway.feed(reader))["trace_id"]

    async def whole() -> list[otlp.Span]:
        found = await trace(gateway, trace_id)
        assert [span.name for span in otlp.tops(found)] == ["GET /feed"]
        ended = otlp.read(encode_spans(spans.get_finished_spans()).resource_spans)
        assert {s.span_id: s for s in found} == {
            s.span_id: s for s in ended if s.trace_id == trace_id
        }
        return found

    assert {span.service for span in await eventually(whole)} >= {
        "gateway", "candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc",
    }  # fmt: skip


async def test_the_newest_traces_come_first_each_in_a_line(
    gateway: World,
) -> None:
    before = datetime.now(UTC)
    await gateway.client.get("/nowhere")
    answer = await gateway.client.get("/user/1")
    trace_id = answer.headers["traceresponse"].split("-")[1]

    async def listed() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = (await ask(gateway, "/debug/traces"))["items"]
        assert trace_id in [each["trace_id"] for each in items]
        return items

    items = await eventually(listed)
    [line] = [each for each in items if each["trace_id"] == trace_id]
    found = await trace(gateway, trace_id)
    assert (line["name"], line["services"]) == ("GET /user/{user_id}", ["gateway"])
    assert (line["spans"], line["errors"]) == (len(found), 0)
    assert line["duration_ms"] == pytest.approx((found[-1].end_ns - found[-1].start_ns) / 1e6)
    started = datetime.fromisoformat(line["started_at"])
    assert abs((started - before).total_seconds()) < 60
    assert (await ask(gateway, "/debug/traces", limit=1))["items"] == items[:1]


async def test_a_trace_with_a_failure_says_so(gateway: World) -> None:
    reader = await gateway.sign_up("unlucky")
    with changed(gateway, posts=None):
        answer = await gateway.client.get("/post/1", headers=reader.headers)
    assert answer.status_code == 500

    async def line() -> dict[str, Any]:
        items = (await ask(gateway, "/debug/traces"))["items"]
        [found] = [each for each in items if each["trace_id"] == answer.json()["trace_id"]]
        assert found["errors"] == 1
        return dict(found)

    assert (await eventually(line))["name"] == "GET /post/{post_id}"


async def test_neither_route_is_traced_itself(gateway: World, spans: InMemorySpanExporter) -> None:
    await ask(gateway, "/debug/traces")
    answer = await gateway.client.get("/debug/traces/" + "0" * 32)
    assert "traceresponse" not in answer.headers
    served = [s for s in spans.get_finished_spans() if s.kind is SpanKind.SERVER]
    assert not [s.name for s in served if "debug" in str((s.attributes or {}).get("url.path"))]


async def test_an_unknown_trace_and_a_malformed_id_are_problems(
    gateway: World,
) -> None:
    problem(await gateway.client.get("/debug/traces/" + "0" * 32), 404, "not_found")
    for wrong in ("1234", "g" * 32, "A" * 32):
        body = problem(await gateway.client.get(f"/debug/traces/{wrong}"), 422, "invalid_argument")
        assert body["errors"][0]["field"] == "trace_id"
    for limit in (0, 101, "many"):
        answer = await gateway.client.get("/debug/traces", params={"limit": limit})
        body = problem(answer, 422, "invalid_argument")
        assert body["errors"][0]["field"] == "limit"


async def test_a_gateway_that_keeps_no_traces_has_no_such_routes(world: World) -> None:
    for path in ("/debug/traces", "/debug/traces/" + "0" * 32):
        problem(await world.client.get(path), 404, "not_found")


async def test_both_routes_are_described_where_they_are(world: World, gateway: World) -> None:
    paths = (await ask(gateway, "/openapi.json"))["paths"]
    assert {"/debug/traces", "/debug/traces/{trace_id}"} <= paths.keys()
    for path in ("/debug/traces", "/debug/traces/{trace_id}"):
        assert paths[path]["get"]["tags"] == ["operations"]
    assert "/debug/traces" not in (await world.client.get("/openapi.json")).json()["paths"]
