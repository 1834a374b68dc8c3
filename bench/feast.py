"""Features by way of Feast: reads split or in one call, and feeds while it serves, stops, hangs.

Needs the stack's Valkey and Feast (`make stack SERVERS="valkey feast"`). Reads are of one user and
150 posts, as ranking a feed needs them. Feeds are of an installation of its own with the demo
world, on embedded backends and the stack's Feast, which it reaches through a gate that can be
closed; states take turns, so that whatever else the machine does meets all alike.

    make bench-feast
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from mesh.settings import Settings
from stack.place import Place
from stack.stack import describe
from stores.features.feast import FeastFeatureStore
from stores.features.feast_client import (
    AFFINITY,
    POST_STATS,
    READ_TIMEOUT_S,
    USER_STATS,
    FeastClient,
)
from stores.features.feast_push import FeastPusher
from stores.features.redis import RedisFeatureStore
from stores.redis_client import open_redis
from tests.eventually import eventually
from tests.fixtures.gate import Gate, gate_to
from tests.fixtures.installation import Installation
from tests.fixtures.sql import fresh_ids
from tests.stores.test_features import unit_vector

_POSTS = 150
_QUEUE = "feature:unpushed:{all}"
_PATIENT_S = 60.0
SPLIT = "split: scalars by HTTP, vectors by pipeline"


def p99(took: Sequence[float]) -> float:
    """The 99th of a hundred sorted times."""
    return took[min(int(len(took) * 0.99), len(took) - 1)]


async def compare_reads(url: str, redis_url: str, calls: int) -> None:
    """Prints what the reads of one ranking take, split as the store does it and otherwise."""
    feast = FeastClient(url, _PATIENT_S)
    plain = httpx.AsyncClient(base_url=url, timeout=_PATIENT_S)
    redis = open_redis(redis_url)
    try:
        posts, authors = fresh_ids(_POSTS), fresh_ids(_POSTS)
        [user] = fresh_ids(1)
        store, cache = FeastFeatureStore(redis, feast), RedisFeatureStore(redis)
        for number, (post, author) in enumerate(zip(posts, authors, strict=True)):
            vector = unit_vector(number)
            await store.put_post(post, author_id=author, has_media=True, embedding=vector)
        await store.put_user_stats(user, follower_count=1, avg_engagement_rate=0.5)
        await store.put_taste(user, unit_vector(7), dict.fromkeys(authors, 0.5))
        pusher = FeastPusher(redis, feast)
        while await pusher.push():
            pass
        user_stats = ("follower_count", "avg_engagement_rate")
        scalars = ("author_id", "like_count", "has_media", "topic")
        pairs = {"user_id": [user] * _POSTS, "author_id": authors}

        async def split() -> None:
            await asyncio.gather(
                store.user(user), store.posts(posts), store.affinities(user, authors)
            )

        async def by_feast_alone() -> None:
            await asyncio.gather(
                feast.read(USER_STATS, (*user_stats, "interest_vector_json"), {"user_id": [user]}),
                feast.read(POST_STATS, (*scalars, "embedding_json"), {"post_id": posts}),
                feast.read(AFFINITY, ("affinity_score",), pairs),
            )

        async def one_call() -> None:
            features = [
                *(f"{USER_STATS}:{name}" for name in (*user_stats, "interest_vector_json")),
                *(f"{POST_STATS}:{name}" for name in (*scalars, "embedding_json")),
                f"{AFFINITY}:affinity_score",
            ]
            body = {"features": features, "entities": {**pairs, "post_id": posts}}
            answer = await plain.post(
                "/get-online-features", json={**body, "full_feature_names": True}
            )
            assert len(answer.json()["results"]) == len(features) + 3

        async def by_cache() -> None:
            await asyncio.gather(
                cache.user(user), cache.posts(posts), cache.affinities(user, authors)
            )

        kinds: dict[str, Callable[[], Awaitable[object]]] = {
            SPLIT: split,
            "three calls of Feast, vectors as JSON": by_feast_alone,
            "one call of Feast, vectors as JSON": one_call,
            "  of split: the user": lambda: store.user(user),
            "  of split: the posts": lambda: store.posts(posts),
            "  of split: the affinities": lambda: store.affinities(user, authors),
            "the cache alone": by_cache,
        }
        took: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(-3, calls):
            for name, call in kinds.items():
                started = time.perf_counter()
                await call()
                if number >= 0:
                    took[name].append((time.perf_counter() - started) * 1000)
        print(f"{'one user and 150 posts, ms':44}{'p50':>8}{'p99':>8}{'p50 ratio':>11}")
        for name, times in took.items():
            ratio = statistics.median(a / b for a, b in zip(times, took[SPLIT], strict=True))
            middle = statistics.median(times)
            print(f"{name:44}{middle:8.1f}{p99(sorted(times)):8.1f}{ratio:11.2f}")
    finally:
        await plain.aclose()
        await feast.close()
        await redis.aclose()


@dataclass
class State:
    """How Feast is, and what feeds took then, in milliseconds."""

    name: str
    enter: Callable[[Gate], Awaitable[None]]
    took: list[float] = field(default_factory=list)
    degraded: int = 0


async def _serving(gate: Gate) -> None:
    await gate.open()


async def _stopped(gate: Gate) -> None:
    await gate.close()


async def _silent(gate: Gate) -> None:
    await gate.open()
    gate.stall()


async def compare_feeds(url: str, rounds: int, feeds: int) -> None:
    """Prints what feeds take while Feast serves, is stopped, and does not answer."""
    states = [
        State("serves", _serving),
        State("is stopped", _stopped),
        State("takes requests and is silent", _silent),
    ]
    with tempfile.TemporaryDirectory(prefix="feed-") as folder:
        async with gate_to(url) as gate:
            installation = Installation(
                Path(folder) / "data",
                FEED_DEMO="true",
                FEED_DEBUG_TRACES="0",
                FEED_FEED_DEADLINE_S="2",
                FEED_FEATURES_URL=f"feast+{gate.url}",
            )
            await installation.start()
            try:
                reader = await installation.demo_reader()

                async def feed(state: State) -> None:
                    started = time.perf_counter()
                    answer = await installation.client.get("/feed", headers=reader.headers)
                    state.took.append((time.perf_counter() - started) * 1000)
                    state.degraded += "features" in answer.json()["degraded"]

                async def well() -> bool:
                    answer = await installation.client.get("/feed", headers=reader.headers)
                    return not answer.json()["degraded"]

                async with open_redis(installation.env["FEED_REDIS_URL"]) as redis:

                    async def pushed() -> bool:
                        return not await redis.zcard(_QUEUE)

                    await eventually(pushed, within_s=300, every_s=0.5)
                for _ in range(rounds):
                    for state in states:
                        await gate.open()
                        await eventually(well, within_s=60, every_s=0.1)
                        await state.enter(gate)
                        for _ in range(feeds):
                            await feed(state)
            finally:
                await installation.stop()
    print(f"\n{'GET /feed while Feast, ms':32}{'p50':>8}{'p99':>8}{'p99 rise':>10}{'degraded':>10}")
    usual = p99(sorted(states[0].took))
    for state in states:
        took = sorted(state.took)
        print(
            f"{state.name:32}{statistics.median(took):8.1f}{p99(took):8.1f}"
            f"{p99(took) - usual:10.1f}{state.degraded / len(took):10.0%}"
        )
    print(f"the deadline of a read is {READ_TIMEOUT_S * 1000:.0f} ms")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=100, help="of each kind of read")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--feeds", type=int, default=60, help="feeds of each state a round")
    options = parser.parse_args()
    servers = await describe(Place.of(Settings()), ["valkey", "feast"])
    url = servers["feast"].url.removeprefix("feast+")
    await compare_reads(url, servers["valkey"].url, options.calls)
    await compare_feeds(url, options.rounds, options.feeds)


if __name__ == "__main__":
    asyncio.run(main())
