"""From 150 candidates to scores, part by part: `make bench-ranker`.

The parts of `ranker_svc.service`, with a Valkey of its own and the heuristic as an ONNX model, and
with `--triton` also by a Triton of its own, which is installed if need be. The floor is what the
Redis client needs for the same two reads, without spans or parsing. Prints medians, and what
reading features is of its floor. Parts take turns, so that other load meets all.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
from feed.v1 import common_pb2, ranker_pb2
from feed.v1.common_pb2 import CANDIDATE_SOURCE_DISCOVERY
from feed.v1.ranker_pb2_grpc import RankerServiceStub
from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table

from local.valkey import Valkey
from mesh.channels import call, open_channel
from mesh.ids import now_ms
from mesh.packing import DIMENSIONS, Vector, pack
from mesh.settings import Settings
from ranker_svc.features import Subject, build, fetch
from ranker_svc.recent_posts import RecentPosts
from ranker_svc.service import server
from stack.triton import heuristic
from stack.triton.install import install
from stack.triton.server import MODEL, Triton
from stores.connect import Connections
from stores.features.port import FeatureStore
from tests.fixtures.scorers import open_scorer
from tests.fixtures.sql import fresh_ids
from tests.fixtures.valkey import free_port

CANDIDATES = 150
_FIELDS = [b"author_id", b"like_count", b"has_media", b"viewer_count", b"embedding", b"topic"]

Work = Callable[[], Awaitable[object]]


def unit_vector(seed: int) -> Vector:
    """Shape (384,)."""
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.linalg.norm(vector)


async def subject_with_features(store: FeatureStore) -> Subject:
    """A reader with a taste, and candidates that have all features."""
    posts, authors, [reader] = fresh_ids(CANDIDATES), fresh_ids(CANDIDATES), fresh_ids(1)
    for number, (post, author) in enumerate(zip(posts, authors, strict=True)):
        await store.put_post(
            post, author_id=author, has_media=True, embedding=unit_vector(number), topic="tea"
        )
    await store.put_taste(reader, unit_vector(7), dict.fromkeys(authors, 0.5))
    return Subject(
        reader_id=reader,
        interest=unit_vector(7),
        follower_count=3,
        avg_engagement_rate=0.1,
        post_ids=posts,
        author_ids=authors,
        sources=[CANDIDATE_SOURCE_DISCOVERY] * CANDIDATES,
    )


def request_of(subject: Subject) -> ranker_pb2.RankCandidatesRequest:
    """The same as a request."""
    assert subject.interest is not None
    return ranker_pb2.RankCandidatesRequest(
        reader=common_pb2.Reader(
            user_id=subject.reader_id, interest_vector=pack(subject.interest), follower_count=3
        ),
        candidates=common_pb2.Candidates(
            post_ids=subject.post_ids,
            author_ids=subject.author_ids,
            sources=subject.sources,
            retrieval_scores=[1.0] * CANDIDATES,
        ),
    )


def bare_reads(client: Redis, subject: Subject) -> Work:
    """The two reads of a feed's features, by the client alone."""

    async def posts() -> None:
        async with client.pipeline(transaction=False) as pipe:
            for post in subject.post_ids:
                pipe.hmget(f"feature:post:{{{post}}}", _FIELDS)
            rows = await pipe.execute()
        assert all(row[4] for row in rows)

    async def affinities() -> None:
        key = f"feature:affinity:{{{subject.reader_id}}}"
        assert all(await client.hmget(key, list(map(str, subject.author_ids))))  # type: ignore[misc]

    async def both() -> None:
        await asyncio.gather(posts(), affinities())

    return both


async def medians(parts: dict[str, Work], rounds: int) -> dict[str, float]:
    """Milliseconds."""
    took: dict[str, list[float]] = {name: [] for name in parts}
    for number in range(-5, rounds):
        for name, work in parts.items():
            started = time.perf_counter()
            await work()
            if number >= 0:
                took[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(times) for name, times in took.items()}


async def measure(folder: Path, rounds: int, *, with_triton: bool) -> None:
    """Starts what is needed, and prints the table."""
    async with AsyncExitStack() as running:
        port = free_port()
        valkey = Valkey(folder / "valkey", port)
        await valkey.start()
        running.push_async_callback(valkey.stop)
        model = folder / "model.onnx"
        heuristic.save(model)
        settings = Settings(
            redis_url=f"redis://127.0.0.1:{port}/0",
            model_url=f"onnx://{model}",
            ranker_port=free_port(),
            data_dir=folder,
        )
        stores = await running.enter_async_context(Connections(settings))
        store = stores.features()
        subject = await subject_with_features(store)
        # With a time limit on each answer, as the store's has.
        client = Redis(port=port, socket_timeout=1)
        running.push_async_callback(client.aclose)
        onnx = await running.enter_async_context(open_scorer(settings.model_url))
        none, warm = RecentPosts(0), RecentPosts(600)
        known = await fetch(store, warm, subject, [])
        features = build(subject, known, now_ms())

        async def cross() -> None:
            build(subject, known, now_ms())

        await running.enter_async_context(server(settings, stores))
        channel = open_channel(f"127.0.0.1:{settings.ranker_port}")
        stub = RankerServiceStub(await running.enter_async_context(channel))
        request = request_of(subject)
        bare, whole = "the two reads by the client alone", "RankCandidates over gRPC, ONNX"
        cold, again = "features, all looked up", "features, posts of a moment ago"
        parts: dict[str, Work] = {
            bare: bare_reads(client, subject),
            cold: lambda: fetch(store, none, subject, []),
            again: lambda: fetch(store, warm, subject, []),
            "cross features": cross,
            "model by ONNX in process": lambda: onnx.score(features),
            whole: lambda: call(stub.RankCandidates, request, timeout=5),
        }
        if with_triton:
            installation = await install(settings.stack_cache.expanduser())
            triton_port = free_port()
            triton = Triton(installation, model, folder / "triton", triton_port)
            await triton.start()
            running.push_async_callback(triton.stop)
            by_triton = await running.enter_async_context(
                open_scorer(f"triton://127.0.0.1:{triton_port}/{MODEL}")
            )
            parts["model by Triton"] = lambda: by_triton.score(features)
        found = await medians(parts, rounds)
    table = Table(f"{CANDIDATES} candidates", "p50, ms", "of the bare reads")
    for name, took in found.items():
        floor = f"{took / found[bare]:.2f}" if name in (cold, again) else ""
        table.add_row(name, f"{took:.2f}", floor)
    Console().print(table)


def main() -> None:
    """Measures."""
    parser = argparse.ArgumentParser(prog="python -m bench.ranker")
    parser.add_argument("--rounds", type=int, default=300)
    parser.add_argument("--triton", action="store_true", help="with a Triton, installed if need be")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="feed-bench-") as folder:
        asyncio.run(measure(Path(folder), options.rounds, with_triton=options.triton))


if __name__ == "__main__":
    main()
