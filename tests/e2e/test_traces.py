"""One request is one trace: whole, without orphans, and each span of the right service."""

from collections.abc import Sequence

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode

from tests.eventually import eventually
from tests.fixtures.world import World

SERVICES = {"gateway", "candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc"}


def of_trace(world: World, trace_id: str) -> list[ReadableSpan]:
    spans = world.spans.get_finished_spans()
    return [each for each in spans if f"{each.context.trace_id:032x}" == trace_id]


def service(span: ReadableSpan) -> str:
    return str(span.resource.attributes["service.name"])


def orphans(spans: Sequence[ReadableSpan]) -> list[str]:
    known = {each.context.span_id for each in spans}
    return [s.name for s in spans if s.parent is not None and s.parent.span_id not in known]


async def test_a_feed_is_one_trace_from_rest_through_every_service_to_the_stores(
    world: World,
) -> None:
    reader = await world.sign_up("traced")
    trace_id = (await world.feed(reader))["trace_id"]
    await eventually(lambda: any(s.kind is SpanKind.SERVER for s in of_trace(world, trace_id)))

    async def whole() -> list[ReadableSpan]:
        spans = of_trace(world, trace_id)
        assert not orphans(spans)
        assert {service(span) for span in spans} == SERVICES
        return spans

    spans = await eventually(whole)
    [root] = [span for span in spans if span.parent is None]
    assert (root.name, root.kind, service(root)) == ("GET /feed", SpanKind.SERVER, "gateway")

    by_id = {span.context.span_id: span for span in spans}
    servers = [s for s in spans if s.kind is SpanKind.SERVER and s is not root]
    assert {s.name.partition("/")[2] for s in servers} == {
        "GetCandidates", "ListSeen", "FilterCandidates", "RankCandidates", "HydrateFeed",
    }  # fmt: skip
    for server in servers:
        assert server.parent is not None
        client = by_id[server.parent.span_id]
        assert (client.kind, client.name, service(client)) == (
            SpanKind.CLIENT, server.name, "gateway",
        )  # fmt: skip
    assert all(span.status.status_code is StatusCode.UNSET for span in spans)
    assert all(span.end_time is not None for span in spans)
    systems = {(span.attributes or {}).get("db.system.name") for span in spans}
    assert "sqlite" in systems


async def test_a_posts_trace_goes_on_into_the_workers_and_their_effects(world: World) -> None:
    author, reader = await world.sign_up("tracer"), await world.sign_up("follower")
    await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    await world.feed(reader)
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await world.client.post(
        "/post",
        json={"text": "follow this through the system"},
        headers={**author.headers, "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"},
    )
    assert answer.headers["traceresponse"].split("-")[1] == trace_id

    async def arrived() -> list[ReadableSpan]:
        spans = of_trace(world, trace_id)
        names = {(service(span), span.name) for span in spans}
        assert ("gateway", "POST /post") in names
        assert ("workers", "send feed.posts.v1") in names
        assert ("workers", "edge.v1.VectorService/Upsert") in names
        handled = [s for s in spans if s.name == "process feed.posts.v1"]
        groups = {(s.attributes or {}).get("messaging.consumer.group.name") for s in handled}
        assert {"fanout", "embedding"} <= groups
        return spans

    spans = await eventually(arrived)
    # The caller's own span is in the caller's process.
    known = {span.context.span_id for span in spans} | {0x00F067AA0BA902B7}
    assert not [s.name for s in spans if s.parent is None or s.parent.span_id not in known]
