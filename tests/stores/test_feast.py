"""Features by way of Feast when it does not do what it should: no server is needed for that."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from redis.asyncio import Redis

from mesh import telemetry
from mesh.degrade import best_effort
from mesh.errors import FeedError, Unavailable
from mesh.packing import Vector
from stores.features.feast import FeastFeatureStore
from stores.features.feast_push import FeastPusher, vector_json
from stores.features.port import FeatureStore, PostFeatures, UserFeatures
from stores.redis_client import open_redis
from tests.eventually import eventually
from tests.fixtures.feast import PATIENT_S, feast_client
from tests.fixtures.gate import gate_to
from tests.fixtures.spans import attribute
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.fixtures.valkey import free_port
from tests.stores.test_features import unit_vector


class Feast:
    """An HTTP server in Feast's place, which answers what the test says."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        # To a request's path and body.
        self.answer: Callable[[str, Any], object] = lambda path, body: {}
        # Cleared, it keeps answers back.
        self.answering = asyncio.Event()
        self.answering.set()
        self.asked: list[tuple[str, Any]] = []
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length: ")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                path = head.split()[1]
                self.heads.append(head)
                self.asked.append((path, body))
                answer = self.answer(path, body)
                await self.answering.wait()
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {self.status} Text\r\ncontent-length: {len(text)}\r\n\r\n".encode()
                    + text
                )
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


def columns(body: Any, **values: list[Any]) -> object:
    """An answer of Feast, its columns in another order than asked."""
    names = [*body["entities"], *reversed(values)]
    everything = {**body["entities"], **values}
    return {
        "metadata": {"feature_names": names},
        "results": [{"values": everything[name]} for name in names],
    }


@pytest.fixture
async def feast() -> AsyncIterator[Feast]:
    feast = Feast()
    async with await asyncio.start_server(feast.serve, "127.0.0.1", 0) as server:
        feast.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield feast
        feast.answering.set()


@asynccontextmanager
async def store_at(
    url: str, redis: Redis, read_timeout_s: float = PATIENT_S
) -> AsyncIterator[FeastFeatureStore]:
    async with feast_client(url, read_timeout_s) as client:
        yield FeastFeatureStore(redis, client)


async def read(store: FeatureStore, post_ids: list[int]) -> tuple[list[Any], list[str]]:
    """What the store knows of posts, and what it went on without."""
    degraded: list[str] = []
    found = await best_effort(
        store.posts(post_ids), [], backend="test", degraded=degraded, timeout_s=PATIENT_S
    )
    return found, degraded


async def put(store: FeatureStore, post_id: int) -> PostFeatures:
    await store.put_post(post_id, author_id=7, has_media=True)
    await store.put_like_counts({post_id: 3})
    return PostFeatures(7, 3, True, 0, None)


async def test_stored_values_are_feast_s_and_the_rest_is_the_cache_s(
    feast: Feast, redis_client: Redis
) -> None:
    post, user = fresh_ids(2)
    async with store_at(feast.url, redis_client) as store:
        await put(store, post)
        await store.put_post(post, author_id=7, has_media=True, embedding=unit_vector(1))
        await store.add_viewers([(post, 1)])
        await store.put_taste(user, unit_vector(2), {10: 0.5})
        feast.answer = lambda path, body: columns(
            body,
            post_stats__author_id=["8"],
            post_stats__like_count=[40],
            post_stats__has_media=[False],
            post_stats__topic=["tea"],
        )
        [known], degraded = await read(store, [post])
        assert (known.author_id, known.like_count, known.has_media) == (8, 40, False)
        assert known.topic == "tea"
        assert known.viewer_count == 1
        np.testing.assert_array_equal(known.embedding, unit_vector(1))
        assert degraded == []

        feast.answer = lambda path, body: columns(
            body, user_stats__follower_count=[12], user_stats__avg_engagement_rate=[0.5]
        )
        stats = await store.user(user)
        assert (stats.follower_count, stats.avg_engagement_rate) == (12, 0.5)
        np.testing.assert_array_equal(stats.interest_vector, unit_vector(2))

        feast.answer = lambda path, body: columns(
            body, user_author_affinity__affinity_score=[None, 0.75]
        )
        # Of each author once, and as often as asked.
        assert await store.affinities(user, [10, 11, 10]) == [0.5, 0.75, 0.5]
    assert [path for path, _ in feast.asked] == ["/get-online-features"] * 3
    assert feast.asked[-1][1]["entities"] == {"user_id": [user, user], "author_id": [10, 11]}


async def test_what_feast_does_not_know_yet_comes_from_the_cache(
    feast: Feast, redis_client: Redis
) -> None:
    fresh, gone = fresh_ids(2)
    feast.answer = lambda path, body: columns(
        body,
        post_stats__author_id=[None, 0],
        post_stats__like_count=[None, 0],
        post_stats__has_media=[None, False],
        post_stats__topic=[None, ""],
    )
    async with store_at(feast.url, redis_client) as store:
        cached = await put(store, fresh)
        assert await read(store, [fresh, gone]) == ([cached, None], [])


WRONG: dict[str, tuple[int, object]] = {
    "an error": (500, {"message": "no"}),
    "no JSON": (200, b"<html>"),
    "something else": (200, {"results": []}),
    "a list": (200, [1]),
    "null": (200, None),
    "a feature missing": (
        200,
        {"metadata": {"feature_names": ["post_id"]}, "results": [{"values": [1]}]},
    ),
    "too few rows": (
        200,
        {
            "metadata": {
                "feature_names": [
                    f"post_stats__{name}"
                    for name in ("author_id", "like_count", "has_media", "topic")
                ]
            },
            "results": [{"values": []}] * 3,
        },
    ),
    "other types": (
        200,
        {
            "metadata": {
                "feature_names": [
                    f"post_stats__{name}"
                    for name in ("author_id", "like_count", "has_media", "topic")
                ]
            },
            "results": [{"values": [{"int64_val": 3}]}] * 3,
        },
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_the_cache_stands_in_for_a_wrong_answer(
    feast: Feast, redis_client: Redis, wrong: str
) -> None:
    feast.status, answer = WRONG[wrong]
    feast.answer = lambda path, body: answer
    async with store_at(feast.url, redis_client) as store:
        post = fresh_id()
        assert await read(store, [post]) == ([None], ["features"])
        cached = await put(store, post)
        assert await read(store, [post]) == ([cached], ["features"])
        assert await store.user(fresh_id()) == UserFeatures()
        assert await store.affinities(1, [fresh_id()]) == [0.0]


async def test_a_feast_that_is_late_is_not_waited_for_and_then_left_alone_until_it_is_well(
    feast: Feast, redis_client: Redis
) -> None:
    feast.answering.clear()
    async with store_at(feast.url, redis_client, read_timeout_s=0.1) as store:
        post = fresh_id()
        cached = await put(store, post)
        for _ in range(5):
            assert await read(store, [post]) == ([cached], ["features"])
        asked = len(feast.asked)
        for _ in range(3):
            assert await read(store, [post]) == ([cached], ["features"])
        # The breaker may have let one of them try, on a machine that stands still.
        assert len(feast.asked) <= asked + 1

    feast.answering.set()
    async with store_at(feast.url, redis_client) as store:
        feast.status = 500
        for _ in range(6):
            await read(store, [post])
        feast.status = 200
        feast.answer = lambda path, body: columns(
            body,
            post_stats__author_id=[1],
            post_stats__like_count=[2],
            post_stats__has_media=[True],
            post_stats__topic=[None],
        )

        async def well() -> bool:
            return await read(store, [post]) == ([PostFeatures(1, 2, True, 0, None)], [])

        await eventually(well, every_s=0.1)


async def test_the_cache_answers_within_a_request_s_deadline(
    feast: Feast, redis_client: Redis
) -> None:
    feast.answering.clear()
    async with store_at(feast.url, redis_client) as store:
        post = fresh_id()
        cached = await put(store, post)
        degraded: list[str] = []
        found = await best_effort(
            store.posts([post]), [], backend="test", degraded=degraded, timeout_s=3
        )
        assert (found, degraded) == ([cached], ["features"])


async def test_a_read_is_a_span_whose_trace_goes_along(
    feast: Feast, redis_client: Redis, spans: InMemorySpanExporter
) -> None:
    async with store_at(feast.url, redis_client) as store:
        feast.status = 503
        await store.posts([5])
    [span] = [s for s in spans.get_finished_spans() if s.name == "POST /get-online-features"]
    assert span.kind is SpanKind.CLIENT
    assert span.status.status_code is StatusCode.ERROR
    assert dict(span.attributes or {}) == {
        "http.request.method": "POST",
        "http.response.status_code": 503,
        "error.type": "503",
        "url.full": f"{feast.url}/get-online-features",
        "url.template": "/get-online-features",
        "server.address": "127.0.0.1",
        "server.port": int(feast.url.rpartition(":")[2]),
        "feed.features.view": "post_stats",
    }
    assert span.context is not None
    sent = f"traceparent: 00-{span.context.trace_id:032x}-{span.context.span_id:016x}-"
    assert sent in feast.heads[0]


@pytest.mark.parametrize("away", [False, True])
async def test_a_read_that_is_late_or_refused_is_an_error(
    feast: Feast, redis_client: Redis, spans: InMemorySpanExporter, away: bool
) -> None:
    feast.answering.clear()
    url = f"http://127.0.0.1:{free_port()}" if away else feast.url
    async with store_at(url, redis_client, PATIENT_S if away else 0.1) as store:
        with telemetry.span("request"):
            await store.posts([5])
    by_name = {s.name: s for s in spans.get_finished_spans()}
    call = by_name["POST /get-online-features"]
    assert call.status.status_code is StatusCode.ERROR
    assert attribute(call, "error.type") == ("ConnectError" if away else "CANCELLED")
    why = attribute(by_name["request"], "feed.without.features")
    assert why == ("UNAVAILABLE" if away else "DEADLINE_EXCEEDED")


async def test_a_cache_that_is_away_is_unavailable(feast: Feast) -> None:
    feast.answering.clear()
    async with (
        open_redis(f"redis://127.0.0.1:{free_port()}/0") as away,
        store_at(feast.url, away) as store,
    ):
        for call in (store.user(1), store.posts([1]), store.affinities(1, [2])):
            with pytest.raises(Unavailable):
                await call


# -- pushing --------------------------------------------------------------------------------------


async def push_all(pusher: FeastPusher) -> None:
    while await pusher.push():
        pass


async def test_whole_rows_are_pushed_once_for_any_number_of_changes(
    feast: Feast, empty_redis: Redis
) -> None:
    async with feast_client(feast.url) as client:
        store, pusher = FeastFeatureStore(empty_redis, client), FeastPusher(empty_redis, client)
        await store.put_post(5, author_id=7, has_media=False, embedding=unit_vector(1), topic="tea")
        for count in range(4):
            await store.put_like_counts({5: count})
        await store.put_user_stats(6, follower_count=2)
        await push_all(pusher)
        assert await pusher.push() == 0
    pushed = {body["push_source_name"]: body for _, body in feast.asked}
    assert len(pushed) == len(feast.asked) == 2
    assert {body["to"] for body in pushed.values()} == {"online_and_offline"}
    post, user = pushed["post_stats_push"]["df"], pushed["user_stats_push"]["df"]
    del post["event_timestamp"], user["event_timestamp"]
    assert post == {
        "post_id": [5],
        "like_count": [3],
        "has_media": [False],
        "author_id": [7],
        "embedding_json": [vector_json(unit_vector(1))],
        "topic": ["tea"],
    }
    assert user == {
        "user_id": [6],
        "follower_count": [2],
        "avg_engagement_rate": [0.0],
        "interest_vector_json": [None],
    }


async def test_the_cache_has_the_topic_where_feast_is_from_before_it_had(
    feast: Feast, redis_client: Redis
) -> None:
    [post] = fresh_ids(1)
    async with store_at(feast.url, redis_client) as store:
        await store.put_post(post, author_id=7, has_media=True, topic="tea")
        feast.answer = lambda path, body: columns(
            body,
            post_stats__author_id=[7],
            post_stats__like_count=[2],
            post_stats__has_media=[True],
            post_stats__topic=[None],
        )
        expected = PostFeatures(7, 2, True, 0, None, topic="tea")
        assert await read(store, [post]) == ([expected], [])


async def test_what_is_no_more_is_pushed_as_such(feast: Feast, empty_redis: Redis) -> None:
    async with feast_client(feast.url) as client:
        store, pusher = FeastFeatureStore(empty_redis, client), FeastPusher(empty_redis, client)
        await put(store, 5)
        await store.put_taste(6, None, {10: 0.5, 11: 0.25})
        await push_all(pusher)
        feast.asked.clear()
        await store.delete_post(5)
        await store.put_taste(6, None, {11: 0.75})
        await push_all(pusher)
        rows = {body["push_source_name"]: body["df"] for _, body in feast.asked}
        # No null: Feast would make floats of all ids of the push.
        assert rows["post_stats_push"]["author_id"] == [0]
        assert rows["post_stats_push"]["topic"] == [""]
        pairs = rows["user_author_affinity_push"]
        assert dict(zip(pairs["author_id"], pairs["affinity_score"], strict=True)) == {
            10: 0.0,
            11: 0.75,
        }
        # And not again and again.
        feast.asked.clear()
        await store.put_taste(6, None, {11: 0.5})
        await push_all(pusher)
        [pairs] = [b["df"] for _, b in feast.asked if "affinity" in b["push_source_name"]]
        assert pairs["author_id"] == [11]


async def test_a_change_during_its_push_is_pushed_again(feast: Feast, empty_redis: Redis) -> None:
    async with feast_client(feast.url) as client:
        store, pusher = FeastFeatureStore(empty_redis, client), FeastPusher(empty_redis, client)
        await put(store, 5)
        feast.answering.clear()
        pushing = asyncio.create_task(pusher.push())
        await eventually(lambda: feast.asked)
        await store.put_like_counts({5: 9})
        feast.answering.set()
        await pushing
        await push_all(pusher)
    assert len(feast.asked) == 2
    assert feast.asked[-1][1]["df"]["like_count"] == [9]


@pytest.mark.parametrize("on_cluster", [False, True])
async def test_everything_can_be_pushed_again(
    feast: Feast, empty_redis: Redis, empty_cluster: Redis, on_cluster: bool
) -> None:
    redis = empty_cluster if on_cluster else empty_redis
    async with feast_client(feast.url) as client:
        store, pusher = FeastFeatureStore(redis, client), FeastPusher(redis, client)
        for post in range(1, 601):
            await put(store, post)
        await store.put_taste(2**62, unit_vector(1), {10: 0.5})
        await push_all(pusher)
        feast.asked.clear()
        assert await pusher.push_again() == 602
        await push_all(pusher)
    pushed = [key for _, body in feast.asked for key in body["df"].get("post_id", ())]
    assert sorted(pushed) == list(range(1, 601))
    sources = {body["push_source_name"] for _, body in feast.asked}
    assert sources == {"user_stats_push", "post_stats_push", "user_author_affinity_push"}


async def test_nothing_is_lost_while_feast_refuses_or_is_away(
    feast: Feast, empty_redis: Redis
) -> None:
    async with gate_to(feast.url) as gate, feast_client(gate.url) as client:
        store, pusher = FeastFeatureStore(empty_redis, client), FeastPusher(empty_redis, client)
        await gate.close()
        posts = list(range(1, 151))
        for post in posts:
            await put(store, post)
        for _ in range(3):
            with pytest.raises(Unavailable):
                await pusher.push()
        await gate.open()
        feast.status = 500
        for _ in range(3):
            with pytest.raises(FeedError):
                await pusher.push()
        feast.status = 200
        feast.asked.clear()
        await push_all(pusher)
    pushed = [post for _, body in feast.asked for post in body["df"]["post_id"]]
    assert sorted(pushed) == posts


async def test_a_row_that_feast_never_takes_holds_up_no_other(
    feast: Feast, empty_redis: Redis
) -> None:
    bad, taken = 77, set[int]()

    def answer(path: str, body: Any) -> object:
        feast.status = 500 if bad in body["df"]["post_id"] else 200
        taken.update(body["df"]["post_id"] if feast.status == 200 else ())
        return {}

    feast.answer = answer
    async with feast_client(feast.url) as client:
        store, pusher = FeastFeatureStore(empty_redis, client), FeastPusher(empty_redis, client)
        for post in range(1, 151):
            await put(store, post)

        async def all_but_one() -> bool:
            try:
                await pusher.push()
            except FeedError:
                return False
            return taken == set(range(1, 151)) - {bad}

        await eventually(all_but_one, every_s=0)
        with pytest.raises(FeedError):
            await pusher.push()


@given(arrays(np.float32, 384, elements=st.floats(-1, 1, width=32)))
def test_a_vector_as_json_is_the_same_vector(vector: Vector) -> None:
    text = vector_json(vector)
    assert text is not None
    np.testing.assert_array_equal(np.array(json.loads(text), np.float32), vector)
