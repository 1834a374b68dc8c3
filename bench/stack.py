"""GET /feed on the real servers, as a multiple of what its backends need for it.

Needs a running `make run-stack` with the demo world. In one run, by turns:

- feeds, one at a time; each one's trace says which calls of backends it waited for
  (`bench.critical_path`);
- each of these calls alone, by the backend's bare client and with a feed's own arguments.

The p50 of GET /feed is divided by the sum of the p50s of its calls. What is left is ours (hops,
messages, rules, spans), and what calls lose when they are made side by side on the same cores.

    make bench-stack
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any
from urllib.parse import urlsplit

import aiomysql
import grpc
import httpx
import numpy as np
import tritonclient.grpc.aio as triton
from redis.asyncio import Redis
from sqlalchemy import event
from sqlalchemy.engine import Engine

from bench.critical_path import backend_calls
from edge.v1 import vectors_pb2, vectors_pb2_grpc
from local.demo.world import DEMO_PASSWORD, DEMO_USERNAME
from mesh import otlp
from mesh.ids import now_ms
from mesh.packing import pack
from mesh.settings import Settings
from ranker_svc.features import DENSE
from stack.place import Place
from stack.run import on_stack
from stack.stack import describe
from stores.connect import Connections
from stores.impressions.pinot import PinotAddress

Call = Callable[[], Awaitable[Any]]
_CANDIDATES = 150
_PAGE = 20
_DAY_MS = 86_400_000
_HOPS = "feed.v1."
_WAITING = "wait for a connection"


def label(span: otlp.Span) -> str:
    """Which of a feed's calls it is."""
    view = span.attributes.get("feed.features.view")
    return " ".join(filter(None, (span.service, span.name, view)))


class Bare:
    """Every call that a feed makes of a backend, by bare clients.

    Args:
        settings: Where the backends are.
        reader_id: Whose feed it is.
        post_ids: A feed's candidates.
        authors: Their authors.
    """

    def __init__(
        self, settings: Settings, reader_id: int, post_ids: list[int], authors: list[int]
    ) -> None:
        self._settings = settings
        self._reader_id = reader_id
        self._post_ids = post_ids
        self._authors = authors
        self._open = AsyncExitStack()

    async def __aenter__(self) -> dict[str, Call]:
        """The calls by label."""
        return {
            **await self._sql(),
            **await self._redis(),
            **await self._pinot(),
            **await self._feast(),
            **await self._vectors(),
            **await self._triton(),
        }

    async def __aexit__(self, *_: object) -> None:
        await self._open.aclose()

    async def _sql(self) -> dict[str, Call]:
        """The statements that the stores send, as they reach the driver."""
        url = urlsplit(self._settings.sql_url)
        connection = await aiomysql.connect(
            host=url.hostname,
            port=url.port,
            user=url.username,
            password=url.password or "",
            db=url.path.strip("/"),
            charset="utf8mb4",
            autocommit=True,
        )
        self._open.callback(connection.close)
        page = self._post_ids[:_PAGE]
        async with Connections(self._settings) as stores:
            posts, users, graph = stores.posts(), stores.users(), stores.graph()
            asked = {
                "gateway SELECT follows pulled_authors blocks": graph.neighborhood(self._reader_id),
                # Once in half a minute.
                "gateway SELECT users": users.get([self._reader_id]),
                "candidate_svc SELECT posts": posts.authors(self._post_ids[:100]),
                "hydrator_svc SELECT posts": posts.get(page),
                "hydrator_svc SELECT users": users.get(self._authors[:_PAGE]),
                "hydrator_svc SELECT likes": posts.liked(self._reader_id, page),
            }
            return {
                name: self._statement(connection, *await _recorded(work))
                for name, work in asked.items()
            }

    def _statement(self, connection: Any, statement: str, parameters: Any) -> Call:
        async def call() -> None:
            async with connection.cursor() as cursor:
                await cursor.execute(statement, parameters)
                await cursor.fetchall()

        return call

    async def _redis(self) -> dict[str, Call]:
        client: Any = Redis.from_url(self._settings.redis_url)
        self._open.push_async_callback(client.aclose)
        reader = f"{{{self._reader_id}}}"
        script = await client.script_load("return redis.call('INCRBY', KEYS[1], ARGV[1])")
        fields = ["author_id", "like_count", "has_media", "viewer_count", "embedding", "topic"]

        async def mailbox() -> None:
            pipeline = client.pipeline(transaction=False)
            pipeline.zrevrange(f"mailbox:{reader}", 0, 101)
            pipeline.expire(f"mailbox:{reader}", 2_592_000)
            await pipeline.execute()

        async def posts() -> None:
            pipeline = client.pipeline(transaction=False)
            for post_id in self._post_ids:
                pipeline.hmget(f"feature:post:{{{post_id}}}", fields)
            await pipeline.execute()

        def command(*arguments: Any) -> Call:
            return lambda: client.execute_command(*arguments)

        user = ("follower_count", "avg_engagement_rate", "interest_vector")
        seen = (f"seen:{reader}", "+inf", now_ms() - 900_000, "BYSCORE", "REV")
        return {
            "gateway EVALSHA limit": command("EVALSHA", script, 1, "limit:{bench}", 1),
            "gateway HMGET feature:user": command("HMGET", f"feature:user:{reader}", *user),
            "candidate_svc PIPELINE mailbox": mailbox,
            "candidate_svc ZREVRANGE unproven": command("ZREVRANGE", "unproven", 0, 199),
            "filter_svc ZRANGE seen": command("ZRANGE", *seen),
            "ranker_svc PIPELINE HMGET feature:post": posts,
            "ranker_svc HMGET feature:affinity": command(
                "HMGET", f"feature:affinity:{reader}", *self._authors
            ),
            "gateway SET feed": command("SET", "feed:{bench}", b"0" * 20_000, "EX", 60),
        }

    async def _pinot(self) -> dict[str, Call]:
        address = PinotAddress.parse(self._settings.impressions_url)
        url = f"http://{address.host}:{address.port}"
        client = await self._open.enter_async_context(httpx.AsyncClient(base_url=url))
        sql = f"""
            SELECT post_id, DISTINCTCOUNT(event_id), MAX(seen_at_ms) FROM {address.table}
            WHERE user_id = {self._reader_id} AND seen_at_ms >= {now_ms() - _DAY_MS}
            GROUP BY post_id ORDER BY MAX(seen_at_ms) DESC, post_id DESC LIMIT 5000
        """

        async def call() -> None:
            (await client.post("/query/sql", json={"sql": sql})).json()

        return {"filter_svc SELECT impressions": call}

    async def _feast(self) -> dict[str, Call]:
        url = self._settings.features_url.removeprefix("feast+")
        client = await self._open.enter_async_context(httpx.AsyncClient(base_url=url))
        authors = list(dict.fromkeys(self._authors))

        def ask(view: str, features: Sequence[str], entities: dict[str, list[int]]) -> Call:
            content = json.dumps(
                {
                    "features": [f"{view}:{name}" for name in features],
                    "entities": entities,
                    "full_feature_names": True,
                }
            )

            async def call() -> None:
                (await client.post("/get-online-features", content=content)).json()

            return call

        stats = ("follower_count", "avg_engagement_rate")
        path = "POST /get-online-features"
        return {
            f"gateway {path} user_stats": ask("user_stats", stats, {"user_id": [self._reader_id]}),
            f"ranker_svc {path} post_stats": ask(
                "post_stats",
                ("author_id", "like_count", "has_media", "topic"),
                {"post_id": self._post_ids},
            ),
            f"ranker_svc {path} user_author_affinity": ask(
                "user_author_affinity",
                ("affinity_score",),
                {"user_id": [self._reader_id] * len(authors), "author_id": authors},
            ),
        }

    async def _vectors(self) -> dict[str, Call]:
        target = self._settings.vectors_url.removeprefix("edge+tcp://")
        channel = await self._open.enter_async_context(grpc.aio.insecure_channel(target))
        stub: Any = vectors_pb2_grpc.VectorServiceStub(channel)
        async with Connections(self._settings) as stores:
            taste = (await stores.features().user(self._reader_id)).interest_vector
        request = vectors_pb2.SearchRequest(
            vector=pack(taste), limit=100, created_after_ms=now_ms() - 30 * _DAY_MS
        )
        return {"candidate_svc edge.v1.VectorService/Search": lambda: stub.Search(request)}

    async def _triton(self) -> dict[str, Call]:
        url = urlsplit(self._settings.model_url)
        client = triton.InferenceServerClient(url.netloc)
        self._open.push_async_callback(client.close)
        matrix = np.zeros((_CANDIDATES, len(DENSE)), np.float32)
        features = triton.InferInput("dense", matrix.shape, "FP32")
        features.set_data_from_numpy(matrix)
        model = url.path.strip("/")
        name = "ranker_svc inference.GRPCInferenceService/ModelInfer"
        return {name: lambda: client.infer(model, [features])}


async def _recorded(work: Awaitable[object]) -> tuple[str, Any]:
    """The one statement that the work executes, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def record(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        seen.append((statement, parameters))

    event.listen(Engine, "before_cursor_execute", record)
    try:
        await work
    finally:
        event.remove(Engine, "before_cursor_execute", record)
    [found] = seen
    return found


async def _milliseconds(call: Call) -> float:
    started = time.perf_counter()
    await call()
    return (time.perf_counter() - started) * 1000


async def measure(settings: Settings, rounds: int) -> None:
    """Prints the calls on the critical path, their bare p50s, and the ratio."""
    async with httpx.AsyncClient(base_url=settings.public_url, timeout=30) as client:
        login = await client.post(
            "/auth/token", data={"username": DEMO_USERNAME, "password": DEMO_PASSWORD}
        )
        login.raise_for_status()
        headers = {"Authorization": f"Bearer {login.json()['access_token']}"}

        async def feed() -> dict[str, Any]:
            answer = await client.get("/feed", headers=headers)
            answer.raise_for_status()
            page: dict[str, Any] = answer.json()
            return page

        for _ in range(20):
            first = await feed()
        fates = await client.get(f"/feed/{first['feed_id']}/explain", headers=headers)
        kept = [each for each in fates.json()["candidates"] if each["verdict"] == "kept"]
        post_ids = [int(each["post_id"]) for each in kept][:_CANDIDATES]
        async with Connections(settings) as stores:
            me = await stores.users().credentials(DEMO_USERNAME)
            by_post = await stores.posts().authors(post_ids)
        if me is None:
            sys.exit("bench-stack needs the demo world")
        authors = [by_post[post_id] for post_id in post_ids]

        took: list[float] = []
        bare: defaultdict[str, list[float]] = defaultdict(list)
        paths: list[list[str]] = []
        async with Bare(settings, me.user.user_id, post_ids, authors) as calls:
            for call in calls.values():
                await call()
            for _ in range(rounds):
                pages = []
                for _ in range(5):
                    started = time.perf_counter()
                    pages.append(await feed())
                    took.append((time.perf_counter() - started) * 1000)
                for name, call in calls.items():
                    for _ in range(5):
                        bare[name].append(await _milliseconds(call))
                paths += [await _path(client, page["trace_id"]) for page in pages]
    _report(took, bare, paths)


async def _path(client: httpx.AsyncClient, trace_id: str) -> list[str]:
    """The labels of the calls that the feed waited for, once its trace is whole."""
    deadline = time.monotonic() + 30
    while True:
        answer = await client.get(f"/debug/traces/{trace_id}")
        if answer.status_code == 200:
            spans = otlp.read(otlp.from_json(answer.json()))
            calls = backend_calls(spans) if len(otlp.tops(spans)) == 1 else []
            # A hop without anything below it has not told its part yet.
            if calls and not any(span.name.startswith(_HOPS) for span in calls):
                return [label(span) for span in calls if span.name != _WAITING]
        if time.monotonic() > deadline:
            sys.exit("bench-stack needs traces: FEED_DEBUG_TRACES and FEED_TRACE_RATIO of 1")
        await asyncio.sleep(0.2)


def _report(took: list[float], bare: dict[str, list[float]], paths: list[list[str]]) -> None:
    p50 = {name: statistics.median(values) for name, values in bare.items()}
    unknown = {name for path in paths for name in path if name not in p50}
    if unknown:
        sys.exit(f"no bare call for {', '.join(sorted(unknown))}")
    sums = [sum(p50[name] for name in path) for path in paths]
    print(
        f"{'on the critical path of so many of ' + str(len(paths)) + ' feeds':66}{'bare p50':>12}"
    )
    for name in sorted(p50, key=lambda name: -sum(path.count(name) for path in paths)):
        on = sum(name in path for path in paths)
        print(f"{on:6}  {name:58}{p50[name]:9.2f} ms")
    feed = statistics.median(took)
    floor = statistics.median(sums)
    print(f"GET /feed p50 {feed:.1f} ms; its critical path's bare calls {floor:.1f} ms")
    print(f"ratio {feed / floor:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    servers = asyncio.run(describe(Place.of(Settings())))
    asyncio.run(measure(on_stack(servers), options.rounds))
