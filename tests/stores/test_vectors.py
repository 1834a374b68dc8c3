"""What every vector store does, and what the embedded engine's process does besides."""

import asyncio
import itertools
import os
import random
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from edge.v1 import vectors_pb2, vectors_pb2_grpc
from mesh.channels import call, open_channel
from mesh.errors import FeedError, InvalidArgument, Unavailable
from mesh.packing import DIMENSIONS, Vector
from mesh.settings import Settings
from stores.connect import Connections
from stores.vectors.edge import EdgeVectorStore
from stores.vectors.port import PostVector, VectorStore
from tests.eventually import eventually
from tests.fixtures.qdrant import opened
from tests.fixtures.vectors import ROOT, start_engine, stop_engine
from tests.fixtures.world import free_ports

AUTHORS = 40
# Ids as snowflakes are: beyond what a float64 can tell apart.
_ids = itertools.count(2**62 + 1)
_windows = itertools.count(4_000_000_000_000, 10_000_000)


@pytest.fixture(params=["edge", "qdrant"])
def store(request: pytest.FixtureRequest) -> VectorStore:
    """Every adapter that is reachable, by its name."""
    fixtures = {"edge": "vectors", "qdrant": "qdrant"}
    adapter: VectorStore = request.getfixturevalue(fixtures[request.param])
    return adapter


@pytest.fixture
async def qdrant(qdrant_url: str) -> AsyncIterator[VectorStore]:
    async with opened(qdrant_url) as store:
        yield store


@pytest.fixture
async def since(store: VectorStore) -> AsyncIterator[int]:
    """A time from which on only this test's posts were created, and none once it has ended."""
    start = next(_windows)
    yield start
    [query] = unit(np.random.default_rng(0), 1)
    hits = await store.search(query, limit=10_000, created_after_ms=start, exact=True)
    await store.delete([hit.post_id for hit in hits])


def unit(rng: np.random.Generator, count: int) -> Vector:
    drawn: Vector = rng.standard_normal((count, DIMENSIONS)).astype(np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


def posts(count: int, since_ms: int, seed: int = 0) -> list[PostVector]:
    """Posts a millisecond apart, of authors in turn."""
    vectors = unit(np.random.default_rng(seed), count)
    return [
        PostVector(next(_ids), 2**61 + i % AUTHORS, since_ms + i, ("tag", f"t{i}"), vectors[i])
        for i in range(count)
    ]


def nearest(to: Vector, among: Sequence[PostVector], limit: int) -> list[int]:
    by_cosine = sorted(among, key=lambda post: -float(post.embedding @ to))
    return [post.post_id for post in by_cosine[:limit]]


async def test_a_post_is_found_as_soon_as_it_is_upserted(store: VectorStore, since: int) -> None:
    [post] = posts(1, since)
    await store.upsert([post])
    [hit] = await store.search(post.embedding, limit=5, created_after_ms=since)
    assert (hit.post_id, hit.author_id) == (post.post_id, post.author_id)
    assert hit.score == pytest.approx(1.0, abs=1e-5)


async def test_hits_are_the_nearest_in_order_with_their_cosines(
    store: VectorStore, since: int
) -> None:
    stored = posts(300, since)
    await store.upsert(stored)
    [query] = unit(np.random.default_rng(9), 1)
    hits = await store.search(query, limit=20, created_after_ms=since, exact=True)
    assert [hit.post_id for hit in hits] == nearest(query, stored, 20)
    by_id = {post.post_id: post for post in stored}
    for hit in hits:
        assert hit.score == pytest.approx(float(by_id[hit.post_id].embedding @ query), abs=1e-5)


async def test_older_posts_and_excluded_authors_are_left_out(
    store: VectorStore, since: int
) -> None:
    stored = posts(200, since)
    await store.upsert(stored)
    query = stored[0].embedding
    excluded = [stored[0].author_id, stored[1].author_id, 999]
    hits = await store.search(
        query, limit=200, created_after_ms=since + 100, excluded_author_ids=excluded
    )
    allowed = [p for p in stored[100:] if p.author_id not in excluded]
    assert [hit.post_id for hit in hits] == nearest(query, allowed, 200)


async def test_the_time_itself_is_within(store: VectorStore, since: int) -> None:
    stored = posts(3, since)
    await store.upsert(stored)
    hits = await store.search(stored[0].embedding, limit=9, created_after_ms=since + 2)
    assert [hit.post_id for hit in hits] == [stored[2].post_id]


async def test_thousands_of_authors_can_be_excluded(store: VectorStore, since: int) -> None:
    stored = posts(80, since)
    await store.upsert(stored)
    everyone = [*{post.author_id for post in stored}, *range(7_500)]
    query = stored[0].embedding
    found = await store.search(
        query, limit=10, created_after_ms=since, excluded_author_ids=everyone
    )
    assert found == []


async def test_an_upsert_replaces(store: VectorStore, since: int) -> None:
    [old, new] = posts(2, since)
    await store.upsert([old])
    replaced = PostVector(old.post_id, 7, since + 5, (), new.embedding)
    await store.upsert([replaced])
    [hit] = await store.search(new.embedding, limit=5, created_after_ms=since)
    assert (hit.post_id, hit.author_id) == (old.post_id, 7)
    assert hit.score == pytest.approx(1.0, abs=1e-5)


async def test_a_deleted_post_is_not_found_any_more(store: VectorStore, since: int) -> None:
    stored = posts(3, since)
    await store.upsert(stored)
    await store.delete([stored[0].post_id, next(_ids)])
    hits = await store.search(stored[0].embedding, limit=5, created_after_ms=since)
    assert {hit.post_id for hit in hits} == {stored[1].post_id, stored[2].post_id}
    assert await store.retrieve([stored[0].post_id]) == {}


async def test_retrieve_gives_the_vectors_that_are_there(store: VectorStore, since: int) -> None:
    stored = posts(5, since)
    await store.upsert(stored)
    found = await store.retrieve([next(_ids), *(post.post_id for post in stored)])
    assert found.keys() == {post.post_id for post in stored}
    for post in stored:
        np.testing.assert_allclose(found[post.post_id], post.embedding, atol=1e-6)


async def test_nothing_asked_is_nothing_done(store: VectorStore, since: int) -> None:
    before = await store.count()
    await store.upsert([])
    await store.delete([])
    assert await store.retrieve([]) == {}
    [query] = unit(np.random.default_rng(1), 1)
    assert await store.search(query, limit=0, created_after_ms=since) == []
    assert await store.search(query, limit=10, created_after_ms=since) == []
    assert await store.count() == before


async def test_searches_find_at_least_95_of_the_100_nearest_with_filters(
    store: VectorStore, since: int
) -> None:
    """The same on 20,000 posts: bench/recall.py."""
    stored = posts(4_000, since, seed=3)
    await store.upsert(stored)
    await store.optimize()
    excluded = [2**61 + i for i in range(AUTHORS // 4)]
    shares = []
    for query in unit(np.random.default_rng(4), 20):
        found, exact = [
            await store.search(
                query,
                limit=100,
                created_after_ms=since + 1_000,
                excluded_author_ids=excluded,
                exact=exact,
            )
            for exact in (False, True)
        ]
        assert len(exact) == 100
        shares.append(len({h.post_id for h in found} & {h.post_id for h in exact}) / 100)
    assert np.mean(shares) >= 0.95


async def test_an_engine_that_is_away_is_unavailable(short_dir: Path) -> None:
    store = EdgeVectorStore(f"unix:{short_dir / 'nobody'}")
    with pytest.raises(Unavailable):
        await store.count()
    await store.close()


async def test_acknowledged_writes_survive_kill_9(short_dir: Path) -> None:
    """Whatever the engine was doing: writing, flushing or optimizing."""
    socket, data = short_dir / "s", short_dir / "data"
    chance, expected = random.Random(5), dict[int, PostVector]()
    store = EdgeVectorStore(f"unix:{socket}")
    for attempt in range(2):
        process = await start_engine(socket, data)
        batches = [posts(200, 1_000, seed=attempt * 100 + i) for i in range(30)]
        acknowledged = asyncio.Semaphore(0)

        async def write(batches: list[list[PostVector]], done: asyncio.Semaphore) -> None:
            for batch in batches:
                await store.upsert(batch)
                expected.update({post.post_id: post for post in batch})
                await store.delete([batch[0].post_id])
                del expected[batch[0].post_id]
                done.release()

        writing = asyncio.create_task(write(batches, acknowledged))
        for _ in range(chance.randint(1, 20)):
            await acknowledged.acquire()
        optimizing = asyncio.create_task(store.optimize())
        await acknowledged.acquire()
        process.kill()
        await process.wait()
        await asyncio.gather(writing, optimizing, return_exceptions=True)
    process = await start_engine(socket, data)
    found = await store.retrieve(list(expected))
    assert found.keys() == expected.keys()
    some = next(iter(expected))
    np.testing.assert_allclose(found[some], expected[some].embedding, atol=1e-6)
    [hit] = await store.search(expected[some].embedding, limit=1, created_after_ms=1_000)
    assert hit.post_id == some
    await store.close()
    await stop_engine(process)


async def test_the_engine_ends_with_its_parent_and_serves_the_same_data_again(
    short_dir: Path,
) -> None:
    socket, data = short_dir / "s", short_dir / "data"
    stored = posts(10, 1_000)
    process = await start_engine(socket, data)
    store = EdgeVectorStore(f"unix:{socket}")
    await store.upsert(stored)
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 10) == 0
    process = await start_engine(socket, data)
    assert await store.count() == 10
    await store.close()
    await stop_engine(process)
    assert process.returncode == 0


async def test_the_engine_says_that_it_is_healthy(vectors_target: str) -> None:
    async with open_channel(vectors_target) as channel:
        request = health_pb2.HealthCheckRequest(service="edge.v1.VectorService")
        # Its stubs declare the class without its methods.
        check = health_pb2_grpc.HealthStub(channel).Check  # type: ignore[attr-defined]
        answer = await call(check, request, timeout=2)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_columns_that_do_not_fit_are_refused(vectors_target: str) -> None:
    one, no_tags = np.ones(DIMENSIONS, "<f4").tobytes(), vectors_pb2.TagList()
    wrong = {
        "vectors": vectors_pb2.UpsertRequest(
            post_ids=[1], author_ids=[1], created_at_ms=[1], tags=[no_tags], vectors=one[:-1]
        ),
        "author_ids": vectors_pb2.UpsertRequest(
            post_ids=[1], created_at_ms=[1], tags=[no_tags], vectors=one
        ),
    }
    async with open_channel(vectors_target) as channel:
        stub = vectors_pb2_grpc.VectorServiceStub(channel)
        for field, request in wrong.items():
            with pytest.raises(InvalidArgument) as refused:
                await call(stub.Upsert, request, timeout=2)
            assert refused.value.fields.keys() == {field}
        with pytest.raises(InvalidArgument):
            await call(stub.Search, vectors_pb2.SearchRequest(vector=b"123", limit=1), timeout=2)


async def test_a_socket_path_that_is_too_long_is_named(short_dir: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "stores.vectors.edge_server"),
        *("--socket", str(short_dir / ("x" * 100)), "--data", str(short_dir / "data")),
        stderr=PIPE,
        cwd=ROOT,
    )
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"FEED_DATA_DIR" in errors
    assert b"Traceback" not in errors


async def test_an_engine_elsewhere_is_reached_by_its_host_and_port(short_dir: Path) -> None:
    [port] = free_ports(1)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "stores.vectors.edge_server"),
        *("--listen", f"127.0.0.1:{port}", "--data", str(short_dir / "data")),
        stdin=PIPE,
        cwd=ROOT,
        env={**os.environ, "FEED_CHILD": "1"},
    )
    settings = Settings(vectors_url=f"edge+tcp://127.0.0.1:{port}")
    async with Connections(settings) as stores:

        async def counted() -> bool:
            try:
                return await stores.vectors().count() == 0
            except FeedError as error:
                raise AssertionError(str(error)) from error

        await eventually(counted)
    process.terminate()
    assert await process.wait() == 0
