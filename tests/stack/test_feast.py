"""Features by way of the real Feast: what is served and pushed, and what happens without it."""

import asyncio
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import httpx
import pytest
from feed.v1 import common_pb2 as c
from feed.v1 import ranker_pb2 as r
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from redis.asyncio import Redis

from mesh.channels import call
from mesh.degrade import best_effort
from mesh.errors import FeedError
from mesh.packing import pack
from mesh.settings import Settings
from ranker_svc.service import server as ranker
from stack.daemon import Daemon
from stack.place import Place
from stack.stack import daemons, describe, start, stop
from stack.temporary import free_ports
from stores.connect import Connections
from stores.features.feast import FeastFeatureStore
from stores.features.feast_client import FeastClient
from stores.features.feast_push import FeastPusher
from stores.features.port import PostFeatures
from stores.redis_client import open_redis
from tests.eventually import eventually
from tests.fixtures.feast import PATIENT_S, feast_client
from tests.fixtures.gate import gate_to
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.fixtures.stack import Stack
from tests.services.conftest import Serve
from tests.stores.test_features import unit_vector
from tests.workers.backstage import Backstage
from tests.workers.conftest import backstage, migrated_file

__all__ = ["backstage", "migrated_file"]
pytestmark = [pytest.mark.stack, pytest.mark.timeout(600)]


@pytest.fixture
async def feast(stack: Stack) -> AsyncIterator[FeastClient]:
    async with feast_client(await stack.url("feast")) as client:
        yield client


@dataclass
class OwnFeast:
    """A Feast, and a Valkey for its online values and the feature cache, that a test may stop."""

    place: Place
    running: dict[str, Daemon]

    @property
    def url(self) -> str:
        return self.running["feast"].server.url

    @property
    def redis_url(self) -> str:
        return self.running["valkey"].server.url

    async def command(self, name: str, *arguments: str) -> tuple[int, str]:
        """`python -m stack.feast`: its exit code, and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "stack.feast", name, *arguments),
            env={
                "PATH": "/usr/bin:/bin",
                "FEED_STACK_PORT": str(self.place.first_port),
                "FEED_DATA_DIR": str(self.place.folder.parent),
                "FEED_STACK_CACHE": str(self.place.cache),
            },
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        printed, _ = await process.communicate()
        assert process.returncode is not None
        return process.returncode, printed.decode()


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[OwnFeast]:
    folder = tmp_path_factory.mktemp("feast")
    here = Place.of(Settings())
    place = replace(here, first_port=free_ports(here.host), folder=folder / "stack")
    running = daemons(place, await describe(place, ["valkey", "feast"]))
    await start(running)
    yield OwnFeast(place, running)
    await stop(running)


async def read(store: FeastFeatureStore, post_ids: list[int]) -> tuple[list[object], list[str]]:
    """What the store knows of posts, and what it went on without."""
    degraded: list[str] = []
    found = await best_effort(
        store.posts(post_ids), [], backend="test", degraded=degraded, timeout_s=PATIENT_S
    )
    return list(found), degraded


async def push_all(pusher: FeastPusher) -> None:
    while await pusher.push():
        pass


async def push_online(url: str, post_id: int, like_count: int) -> None:
    """Another value than offline and in the cache."""
    row = {
        "post_id": [post_id],
        "like_count": [like_count],
        "has_media": [True],
        "author_id": [1],
        "embedding_json": [None],
        "topic": [""],
        "event_timestamp": [datetime.now(UTC).isoformat()],
    }
    body = {"push_source_name": "post_stats_push", "df": row, "to": "online"}
    async with httpx.AsyncClient(timeout=PATIENT_S) as client:
        answer = await client.post(f"{url.removeprefix('feast+')}/push", json=body)
        assert answer.status_code == 200


async def test_feast_s_values_are_served(feast: FeastClient, redis_client: Redis) -> None:
    store = FeastFeatureStore(redis_client, feast)
    post, unknown = fresh_ids(2)
    await store.put_post(post, author_id=7, has_media=True)
    await feast.push(
        "post_stats",
        {
            "post_id": [post],
            "like_count": [40],
            "has_media": [False],
            "author_id": [2**62 + 1],
            "embedding_json": [None],
            "topic": ["tea"],
            "event_timestamp": ["2026-01-01T00:00:00.000001+00:00"],
        },
    )
    expected = PostFeatures(2**62 + 1, 40, False, 0, None, topic="tea")
    assert await read(store, [unknown, post]) == ([None, expected], [])


async def test_a_post_s_features_reach_feast_by_the_workers(
    backstage: Backstage, feast: FeastClient, stack: Stack
) -> None:
    url = f"{await stack.url('feast')}?timeout={PATIENT_S}"
    settings = backstage.settings.model_copy(update={"features_url": url})
    async with Connections(settings) as stores:
        there = Backstage(settings, stores)
        author, reader = fresh_ids(2)
        async with there.running("relay", "embedding", "features", "feature_push"):
            post = await there.post(author, "A text about tea", tags=("tea",))
            await there.like(reader, post)
            await there.follow(reader, author)

            async def arrived() -> bool:
                [row] = await feast.read(
                    "post_stats",
                    ["author_id", "like_count", "has_media", "embedding_json", "topic"],
                    {"post_id": [post]},
                )
                [stats] = await feast.read(
                    "user_stats", ["follower_count", "avg_engagement_rate"], {"user_id": [author]}
                )
                [pair] = await feast.read(
                    "user_author_affinity",
                    ["affinity_score"],
                    {"user_id": [reader], "author_id": [author]},
                )
                assert row[:3] == (author, 1, False)
                assert row[3] is not None
                assert row[4] == "tea"
                assert stats[0] == 1
                assert stats[1] > 0
                assert pair[0] is not None
                return True

            await eventually(arrived, within_s=90, every_s=0.2)
            await there.delete(post, author)

            async def gone() -> bool:
                [row] = await feast.read("post_stats", ["author_id"], {"post_id": [post]})
                return row == (0,)

            await eventually(gone, within_s=90, every_s=0.2)


async def test_ranking_without_feast_uses_the_cache(
    serve: Serve, stores: Connections, settings: Settings, stack: Stack
) -> None:
    reader, author = fresh_ids(2)
    posts = fresh_ids(20)
    async with gate_to((await stack.url("feast")).removeprefix("feast+")) as gate:
        async with feast_client(gate.url) as client, open_redis(settings.redis_url) as redis:
            store = FeastFeatureStore(redis, client)
            for number, post in enumerate(posts):
                await store.put_post(
                    post,
                    author_id=author,
                    has_media=bool(number % 2),
                    embedding=unit_vector(number),
                )
            await store.put_like_counts({post: number for number, post in enumerate(posts)})
            await store.put_taste(reader, unit_vector(3), {author: 0.5})
            await push_all(FeastPusher(redis, client))
        request = r.RankCandidatesRequest(
            reader=c.Reader(user_id=reader, interest_vector=pack(unit_vector(3))),
            candidates=c.Candidates(
                post_ids=posts,
                author_ids=[author] * len(posts),
                sources=[c.CANDIDATE_SOURCE_SOCIAL] * len(posts),
                retrieval_scores=[1.0] * len(posts),
            ),
        )
        async with serve(ranker, features_url=f"feast+{gate.url}?timeout=10") as channel:
            stub = RankerServiceStub(channel)
            whole = await call(stub.RankCandidates, request, timeout=PATIENT_S)
            assert list(whole.degraded) == []
            await gate.close()
            # Until the breaker opens, and after.
            for _ in range(8):
                without = await call(stub.RankCandidates, request, timeout=PATIENT_S)
                assert list(without.degraded) == ["features"]
                assert list(without.scores) == pytest.approx(list(whole.scores), abs=1e-4)
                assert list(without.author_affinities) == pytest.approx([0.5] * len(posts))
            await gate.open()

            async def whole_again() -> bool:
                answer = await call(stub.RankCandidates, request, timeout=PATIENT_S)
                return not answer.degraded

            await eventually(whole_again, within_s=60, every_s=0.1)


async def test_a_feast_whose_redis_is_away_is_left_alone_until_it_is_back(
    own: OwnFeast, redis_client: Redis
) -> None:
    post = fresh_id()
    # Feast itself takes 8 s to say that its Redis is away.
    async with feast_client(own.url, read_timeout_s=2) as client:
        store = FeastFeatureStore(redis_client, client)
        await store.put_post(post, author_id=7, has_media=True)
        cached = [PostFeatures(7, 0, True, 0, None)]
        assert await read(store, [post]) == (cached, [])
        await own.running["valkey"].stop()
        assert not await own.running["feast"].is_healthy()
        for _ in range(7):
            assert await read(store, [post]) == (cached, ["features"])
        await own.running["valkey"].start()

        async def well() -> bool:
            return await read(store, [post]) == (cached, [])

        await eventually(well, within_s=90, every_s=0.2)


async def test_what_changes_while_feast_is_killed_reaches_it_when_it_is_back(
    own: OwnFeast,
) -> None:
    posts = fresh_ids(300)
    async with (
        feast_client(own.url) as client,
        open_redis(own.redis_url) as redis,
    ):
        store, pusher = FeastFeatureStore(redis, client), FeastPusher(redis, client)

        async def push_forever() -> None:
            while True:
                try:
                    pushed = await pusher.push()
                except FeedError:
                    pushed = 0
                await asyncio.sleep(0 if pushed else 0.2)

        pushing = asyncio.create_task(push_forever())
        for number, post in enumerate(posts):
            await store.put_post(post, author_id=number + 1, has_media=False)
            if number == 150:
                await own.running["feast"].kill()
        await own.running["feast"].start()

        async def arrived() -> bool:
            rows = await client.read("post_stats", ["author_id"], {"post_id": posts})
            return rows == [(number + 1,) for number in range(len(posts))]

        async def all_arrived() -> bool:
            try:
                return await arrived()
            except FeedError:
                return False

        await eventually(all_arrived, within_s=90, every_s=0.2)
        pushing.cancel()
        await asyncio.gather(pushing, return_exceptions=True)


async def test_offline_online_and_cached_values_agree_and_a_difference_is_found(
    own: OwnFeast,
) -> None:
    check = ("check", "--entities", "1000")
    async with (
        feast_client(own.url) as client,
        open_redis(own.redis_url) as redis,
        open_redis(own.redis_url.removesuffix("/0") + "/1") as online,
    ):
        await redis.flushdb()
        store, pusher = FeastFeatureStore(redis, client), FeastPusher(redis, client)
        posts, users = fresh_ids(60), fresh_ids(20)
        for number, post in enumerate(posts):
            embedding = unit_vector(number) if number % 3 else None
            await store.put_post(post, author_id=users[0], has_media=True, embedding=embedding)
        for number, user in enumerate(users):
            await store.put_user_stats(user, follower_count=number, avg_engagement_rate=0.1)
            taste = unit_vector(number) if number % 2 else None
            await store.put_taste(user, taste, dict.fromkeys(users[number:], 1 / 3))
        await push_all(pusher)
        await store.put_like_counts(dict.fromkeys(posts[::2], 2**40))
        await store.put_taste(users[0], unit_vector(99), {users[1]: 0.1})
        await store.delete_post(posts[-1])
        await push_all(pusher)
        assert (await own.command("compact"))[0] == 0
        for view in ("user_stats", "post_stats", "user_author_affinity"):
            assert len(list((own.place.data("feast") / "offline" / view).iterdir())) == 1
        code, printed = await own.command(*check)
        assert (code, "0 differences" in printed) == (0, True), printed

        await push_online(own.url, posts[0], like_count=5)
        code, printed = await own.command(*check)
        assert code == 1
        assert f"post_stats ({posts[0]},) like_count" in printed

        await online.flushdb()
        code, printed = await own.command(*check)
        assert code == 1
        assert "online=None" in printed
        assert (await own.command("materialize"))[0] == 0
        code, printed = await own.command(*check)
        assert (code, "0 differences" in printed) == (0, True), printed
