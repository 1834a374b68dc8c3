"""GET /feed, its pages, its explanation, and what it does when something is away."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from feed.v1 import events_pb2
from feed.v1.candidate_pb2_grpc import CandidateServiceStub
from feed.v1.filter_pb2_grpc import FilterServiceStub
from feed.v1.hydrator_pb2_grpc import HydratorServiceStub
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from opentelemetry.trace import SpanKind

from gateway.ops import health_check
from gateway.tokens import Cursor
from mesh.channels import open_channel
from mesh.ids import now_ms
from stores.events import codec
from stores.events.port import Record, Topic
from stores.events.redis import RedisEventLog
from stores.features.redis import RedisFeatureStore
from stores.impressions.redis import RedisRecentSeen
from stores.mailboxes.port import Box
from stores.redis_client import open_redis
from stores.snapshots.redis import RedisSnapshotStore
from tests.eventually import eventually
from tests.exposition import Exposition
from tests.fixtures.world import Person, World
from tests.gateway.helpers import changed, problem

STUBS: dict[str, Any] = {
    "candidate": CandidateServiceStub,
    "filter": FilterServiceStub,
    "ranker": RankerServiceStub,
    "hydrator": HydratorServiceStub,
}


async def ids_of(world: World, reader: Person, **query: Any) -> list[str]:
    return [item["post_id"] for item in (await world.feed(reader, **query))["items"]]


Scene = tuple[Person, Person, list[str]]


@pytest.fixture
async def scene(world: World) -> Scene:
    """An author, a follower, and the author's six posts in the follower's mailbox."""
    author, reader = await world.sign_up("author"), await world.sign_up("reader")
    await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    await world.feed(reader)
    posts = [await world.post(author, f"chapter {n}") for n in range(6)]

    async def arrived() -> bool:
        box = Box("mailbox", int(reader.user_id))
        [mailbox] = await world.stores.mailboxes().newest([box], len(posts))
        return set(map(int, posts)) == set(mailbox or ())

    await eventually(arrived)
    return author, reader, posts


@pytest.fixture
async def away(world: World) -> AsyncIterator[Any]:
    """`away("filter")`: the gateway's services with that one at a port where nobody listens."""
    async with open_channel("127.0.0.1:9") as channel:

        def services(*names: str) -> Any:
            dead = {name: STUBS[name](channel) for name in names}
            return replace(world.app.state.backends.services, **dead)

        yield services


async def test_an_item_says_what_it_is_and_why_it_is_there(world: World, scene: Scene) -> None:
    author, reader, posts = scene
    page = await world.feed(reader, limit=50)
    item = next(item for item in page["items"] if item["post_id"] == posts[0])
    assert set(item) == {
        "post_id", "author", "text", "tags", "media", "like_count", "liked", "created_at",
        "source", "score", "reason",
    }  # fmt: skip
    assert item["source"] == "social"
    assert item["reason"] == f"You follow {author.username}"
    assert page["degraded"] == []
    assert len(page["trace_id"]) == 32


@pytest.mark.parametrize("limit", ["0", "51", "x", "-1"])
async def test_a_limit_out_of_bounds_is_refused(world: World, limit: str) -> None:
    reader = await world.sign_up()
    answer = await world.client.get("/feed", params={"limit": limit}, headers=reader.headers)
    assert problem(answer, 422, "invalid_argument")["errors"][0]["field"] == "limit"


async def test_a_cursor_is_its_readers_alone_and_cannot_be_changed(
    world: World, scene: Scene
) -> None:
    author, reader, _ = scene
    cursor = (await world.feed(reader, limit=1))["next_cursor"]

    async def ask(value: str, who: Person = reader) -> Any:
        return await world.client.get("/feed", params={"cursor": value}, headers=who.headers)

    head, body, signature = cursor.split(".")
    body = problem(await ask(f"{head}.{body}x.{signature}"), 422, "invalid_argument")
    assert body["errors"][0]["field"] == "cursor"
    problem(await ask("junk"), 422, "invalid_argument")
    problem(await ask(reader.headers["Authorization"].split()[1]), 422, "invalid_argument")
    problem(await ask(cursor, author), 403, "permission_denied")
    cursors = world.app.state.backends.cursors
    old = cursors.sign(Cursor("f" * 32, 1), int(reader.user_id), now_ms() - 1000)
    problem(await ask(old), 410, "gone")
    unkept = cursors.sign(Cursor("f" * 32, 1), int(reader.user_id), now_ms() + 60_000)
    problem(await ask(unkept), 410, "gone")


async def test_a_page_can_be_asked_for_again(world: World, scene: Scene) -> None:
    _, reader, _ = scene
    first = await world.feed(reader, limit=2)
    one, two = [await world.feed(reader, limit=3, cursor=first["next_cursor"]) for _ in range(2)]
    assert one["items"] == two["items"]
    assert one["feed_id"] == two["feed_id"] == first["feed_id"]
    assert len(one["items"]) == 3


async def test_whoever_is_blocked_between_pages_is_not_on_the_next(
    world: World, scene: Scene
) -> None:
    author, reader, posts = scene
    page = await world.feed(reader, limit=1)
    await world.client.put(f"/user/{author.user_id}/block", headers=reader.headers)
    rest = []
    while page["next_cursor"]:
        page = await world.feed(reader, limit=50, cursor=page["next_cursor"])
        rest += [item["post_id"] for item in page["items"]]
    assert not set(rest) & set(posts)


async def test_an_explanation_is_for_the_feeds_own_reader(world: World, scene: Scene) -> None:
    author, reader, posts = scene
    page = await world.feed(reader, limit=3)
    path = f"/feed/{page['feed_id']}/explain"
    answer = await world.client.get(path, headers=reader.headers)
    explained = answer.json()
    assert explained["feed_id"] == page["feed_id"]
    assert explained["trace_id"] == page["trace_id"]
    assert explained["model_version"]
    placed = sorted(
        (fate for fate in explained["candidates"] if fate["position"] is not None),
        key=lambda fate: fate["position"],
    )
    assert [fate["post_id"] for fate in placed[:3]] == [i["post_id"] for i in page["items"]]
    assert [fate["score"] for fate in placed[:3]] == [i["score"] for i in page["items"]]
    assert all(fate["placement"] for fate in placed)

    one = (await world.client.get(f"{path}/{posts[0]}", headers=reader.headers)).json()
    assert one["source"] == "social"
    assert one["author_id"] == author.user_id
    problem(await world.client.get(path, headers=author.headers), 404, "not_found")
    unknown = await world.client.get(f"/feed/{'0' * 32}/explain", headers=reader.headers)
    problem(unknown, 404, "not_found")
    no_candidate = await world.client.get(f"{path}/1", headers=reader.headers)
    assert "candidates" in problem(no_candidate, 404, "not_found")["detail"]


# -- without ... ------------------------------------------------------------------------------


async def test_without_retrieval_the_page_is_empty_and_says_why(world: World, away: Any) -> None:
    reader = await world.sign_up()
    with changed(world, services=away("candidate")):
        page = await world.feed(reader)
    assert page["items"] == []
    assert page["next_cursor"] is None
    assert set(page["degraded"]) == {"social", "discovery"}


async def test_without_the_filter_the_page_is_still_safe(
    world: World, scene: Scene, away: Any
) -> None:
    author, reader, posts = scene
    await world.post(reader, "my own")
    with changed(world, services=away("filter")):
        page = await world.feed(reader, limit=50)
        assert set(page["degraded"]) == {"seen", "filter"}
        shown = [item["post_id"] for item in page["items"]]
        assert set(posts) <= set(shown)
        assert len(shown) == len(set(shown))
        assert reader.user_id not in {item["author"]["user_id"] for item in page["items"]}
        await world.client.put(f"/user/{author.user_id}/block", headers=reader.headers)
        assert not set(posts) & set(await ids_of(world, reader, limit=50))


async def test_without_the_ranker_the_feed_is_in_the_order_of_retrieval(
    world: World, scene: Scene, away: Any
) -> None:
    _, reader, posts = scene
    with changed(world, services=away("ranker")):
        page = await world.feed(reader, limit=50)
    assert page["degraded"] == ["ranker"]
    social = [item["post_id"] for item in page["items"] if item["source"] == "social"]
    assert social == sorted(posts, key=int, reverse=True)


async def test_without_the_hydrator_there_is_no_page(world: World, scene: Scene, away: Any) -> None:
    _, reader, _ = scene
    with changed(world, services=away("hydrator")):
        answer = await world.client.get("/feed", headers=reader.headers)
    problem(answer, 503, "unavailable")


async def test_without_redis_there_is_one_page_that_cannot_be_resumed(
    world: World, scene: Scene
) -> None:
    _, reader, _ = scene
    dead = open_redis("redis://127.0.0.1:9/0")
    gone = {"snapshots": RedisSnapshotStore(dead), "features": RedisFeatureStore(dead)}
    with changed(world, **gone):
        page = await world.feed(reader, limit=1)
    assert len(page["items"]) == 1
    assert page["next_cursor"] is None
    assert set(page["degraded"]) == {"snapshots", "features"}


# -- impressions ------------------------------------------------------------------------------


async def report(world: World, reader: Person, *items: dict[str, Any]) -> Any:
    return await world.client.post(
        "/impressions", json={"items": list(items)}, headers=reader.headers
    )


async def test_reports_of_posts_that_do_not_exist_are_counted_and_ignored(
    world: World, scene: Scene
) -> None:
    _, reader, posts = scene
    answer = await report(world, reader, {"post_id": posts[0]}, {"post_id": "1"})
    assert (answer.status_code, answer.json()) == (202, {"accepted": 1, "ignored": 1})


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"post_id": 5}, "items.0.post_id"),
        ({}, "items.0.post_id"),
        ({"post_id": "5", "position": -1}, "items.0.position"),
        ({"post_id": "5", "feed_id": "x"}, "items.0.feed_id"),
        ({"post_id": "5", "dwell_ms": "long"}, "items.0.dwell_ms"),
    ],
)
async def test_a_report_against_the_rules_names_the_field(
    world: World, item: dict[str, Any], field: str
) -> None:
    body = problem(await report(world, await world.sign_up(), item), 422, "invalid_argument")
    assert [error["field"] for error in body["errors"]] == [field]


async def test_more_reports_than_allowed_and_none_at_all_are_refused(world: World) -> None:
    reader = await world.sign_up()
    problem(await report(world, reader, *([{"post_id": "5"}] * 201)), 422, "invalid_argument")
    problem(await report(world, reader), 422, "invalid_argument")


async def test_without_the_event_log_reports_wait_in_the_outbox(world: World, scene: Scene) -> None:
    _, reader, posts = scene
    dead = open_redis("redis://127.0.0.1:9/0")
    subscription = await world.stores.events().subscribe(reader.user_id, [Topic.IMPRESSIONS])
    gone = {"events": RedisEventLog(dead), "recent_seen": RedisRecentSeen(dead)}
    with changed(world, **gone):
        answer = await report(world, reader, {"post_id": posts[0], "dwell_ms": 700})
    assert answer.status_code == 202

    async def relayed() -> list[Record]:
        records = await subscription.read(1000, 0.1)
        return [record for record in records if record.key == reader.user_id]

    [record] = await eventually(relayed)
    await subscription.close()
    event = codec.decode(record, events_pb2.ImpressionEvent)
    assert (str(event.post_id), event.dwell_ms, event.HasField("position")) == (
        posts[0],
        700,
        False,
    )
    assert json.loads(record.value)["user_id"] == reader.user_id
    trace_id = answer.headers["traceresponse"].split("-")[1]
    assert record.headers["traceparent"].split("-")[1] == trace_id


# -- traces and operations --------------------------------------------------------------------


async def test_a_feed_is_one_trace_through_all_services(world: World, scene: Scene) -> None:
    _, reader, _ = scene
    page = await world.feed(reader)

    def tree() -> bool:
        spans = [
            span
            for span in world.spans.get_finished_spans()
            if f"{span.context.trace_id:032x}" == page["trace_id"]
        ]
        servers = {
            span.resource.attributes["service.name"]
            for span in spans
            if span.kind is SpanKind.SERVER
        }
        services = {"candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc"}
        assert servers == {"gateway"} | services
        [root] = [span for span in spans if span.parent is None]
        assert root.name == "GET /feed"
        assert root.attributes is not None
        assert root.attributes["feed.id"] == page["feed_id"]
        known = {span.context.span_id for span in spans}
        assert all(span.parent.span_id in known for span in spans if span.parent is not None)
        return True

    await eventually(tree)


async def test_concurrent_feeds_keep_their_traces_apart(world: World, scene: Scene) -> None:
    _, reader, _ = scene
    pages = await asyncio.gather(*(world.feed(reader) for _ in range(20)))
    assert len({page["trace_id"] for page in pages}) == 20


async def test_readiness_names_what_is_not_ready(world: World) -> None:
    answer = await world.client.get("/readyz")
    assert answer.status_code == 200, answer.text
    assert set(answer.json()["parts"]) == {
        "sql", "candidate_svc", "filter_svc", "ranker_svc", "hydrator_svc",
    }  # fmt: skip
    services = world.app.state.backends.services
    async with open_channel("127.0.0.1:9") as channel:
        dead = replace(services, health={**services.health, "filter_svc": health_check(channel)})
        with changed(world, services=dead):
            answer = await world.client.get("/readyz")
    assert answer.status_code == 503
    parts = answer.json()["parts"]
    assert [name for name, state in parts.items() if state != "ok"] == ["filter_svc"]


async def test_probes_leave_no_spans(world: World) -> None:
    before = {span.context.span_id for span in world.spans.get_finished_spans()}
    for path in ("/healthz", "/readyz", "/metrics"):
        assert (await world.client.get(path)).status_code == 200
    new = [
        span
        for span in world.spans.get_finished_spans()
        if span.context.span_id not in before
        and span.resource.attributes["service.name"] == "gateway"
    ]
    assert new == []


async def test_metrics_are_open_metrics_and_lead_to_traces(world: World) -> None:
    reader = await world.sign_up()
    await world.feed(reader)
    answer = await world.client.get("/metrics")
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    read = Exposition(answer.text)
    for stage in ("total", "reader", "social", "discovery", "seen", "filter", "ranker", "hydrator"):
        labels = {"outcome": "ok", "stage": stage}
        assert read.value("feed_latency_seconds_count", labels) > 0
    assert 'http_route="/feed"' in answer.text
    assert "# {trace_id=" in answer.text
