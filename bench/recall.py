"""Recall and speed of the embedded vector engine, against an exact search.

    python -m bench.recall --points 20000 --queries 200

The data is synthetic: unit vectors in clusters, as embeddings of posts on topics are, with authors
and dates. An engine of its own is started in a temporary folder.
"""

import argparse
import asyncio
import os
import sys
import tempfile
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mesh.errors import FeedError
from mesh.packing import DIMENSIONS, Vector
from stores.vectors.edge import EdgeVectorStore
from stores.vectors.port import PostVector

LIMIT = 100
CLUSTERS = 24
AUTHORS = 500
EXCLUDED_AUTHORS = 100
SPREAD = 0.6
START_MS = 1_700_000_000_000
EVERY_MS = 60_000
READY_WITHIN_S = 30.0


@dataclass(frozen=True)
class Search:
    """One kind of search, and which of the points it may find."""

    name: str
    created_after_ms: int
    excluded_author_ids: list[int]
    allowed: NDArray[np.bool_]


@dataclass(frozen=True)
class Measured:
    """Of one kind of search: recall@100 on average, and seconds of each search."""

    recall: float
    seconds: list[float]


def clustered(rng: np.random.Generator, count: int, centres: Vector) -> Vector:
    """Unit vectors of shape (count, 384) around the centres."""
    chosen = centres[rng.integers(len(centres), size=count)]
    noise = rng.standard_normal((count, DIMENSIONS)) * SPREAD / np.sqrt(DIMENSIONS)
    return _unit(chosen + noise)


def unit_centres(rng: np.random.Generator) -> Vector:
    return _unit(rng.standard_normal((CLUSTERS, DIMENSIONS)))


def _unit(drawn: NDArray[np.floating]) -> Vector:
    unit: Vector = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return unit


@asynccontextmanager
async def fresh_engine() -> AsyncIterator[EdgeVectorStore]:
    """A client of an engine that has nothing yet, and that ends with the block."""
    with tempfile.TemporaryDirectory(prefix="feed-") as folder:
        socket = Path(folder) / "s"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "stores.vectors.edge_server", "--socket", str(socket)),
            *("--data", str(Path(folder) / "data")),
            stdin=PIPE,
            env={**os.environ, "FEED_CHILD": "1", "FEED_LOG_LEVEL": "WARNING"},
        )
        store = EdgeVectorStore(f"unix:{socket}")
        try:
            async with asyncio.timeout(READY_WITHIN_S):
                while not await _answers(store):  # noqa: ASYNC110  another process
                    await asyncio.sleep(0.05)
            yield store
        finally:
            await store.close()
            if process.returncode is None:
                process.terminate()
            await process.wait()


async def _answers(store: EdgeVectorStore) -> bool:
    try:
        return await store.count() >= 0
    except FeedError:
        return False


async def measure(
    store: EdgeVectorStore, search: Search, queries: Vector, vectors: Vector, exact: bool
) -> Measured:
    """Runs each query, and compares what it finds with what numpy finds."""
    shares, seconds = [], []
    for query, right in zip(queries, nearest(queries, vectors, search.allowed), strict=True):
        started = time.perf_counter()
        hits = await store.search(
            query,
            limit=LIMIT,
            created_after_ms=search.created_after_ms,
            excluded_author_ids=search.excluded_author_ids,
            exact=exact,
        )
        seconds.append(time.perf_counter() - started)
        shares.append(len({hit.post_id for hit in hits} & set(right)) / max(len(right), 1))
    return Measured(float(np.mean(shares)), seconds)


def nearest(queries: Vector, vectors: Vector, allowed: NDArray[np.bool_]) -> list[list[int]]:
    """The ids of the LIMIT nearest allowed vectors of each query, computed here by numpy."""
    ids = np.flatnonzero(allowed)
    scores = queries @ vectors[ids].T
    return [[int(i) + 1 for i in ids[np.argsort(-row)[:LIMIT]]] for row in scores]


def line(what: str, measured: Measured) -> str:
    p50, p99 = np.percentile(measured.seconds, [50, 99]) * 1e3
    return f"{what:40} {measured.recall:10.4f} {p50:9.2f} {p99:9.2f}"


async def bench(points: int, query_count: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    centres = unit_centres(rng)
    vectors, queries = clustered(rng, points, centres), clustered(rng, query_count, centres)
    authors = rng.integers(1, AUTHORS + 1, size=points)
    posts = [
        PostVector(i + 1, int(authors[i]), START_MS + i * EVERY_MS, (), vectors[i])
        for i in range(points)
    ]
    excluded = list(range(1, EXCLUDED_AUTHORS + 1))
    newest = np.arange(points) >= points // 4
    searches = [
        Search("all", 0, [], np.ones(points, np.bool_)),
        Search(
            "newest 3/4, 100 authors excluded",
            START_MS + points // 4 * EVERY_MS,
            excluded,
            newest & ~np.isin(authors, excluded),
        ),
    ]
    async with fresh_engine() as store:
        started = time.perf_counter()
        await store.upsert(posts)
        print(f"{points / (time.perf_counter() - started):,.0f} upserts/s of {points:,} points")
        for state in ("as upserted", "optimized"):
            if state == "optimized":
                started = time.perf_counter()
                await store.optimize()
                print(f"\noptimize: {time.perf_counter() - started:.2f} s")
            print(f"\n{state:40} {'recall@100':>10} {'p50 ms':>9} {'p99 ms':>9}")
            for search in searches:
                for exact in (False, True):
                    measured = await measure(store, search, queries, vectors, exact)
                    print(line(f"{search.name}{', exact' if exact else ''}", measured))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--points", type=int, default=20_000, help="vectors to search among")
    parser.add_argument("--queries", type=int, default=200, help="searches of each kind")
    parser.add_argument("--seed", type=int, default=1, help="of the synthetic data")
    arguments = parser.parse_args()
    asyncio.run(bench(arguments.points, arguments.queries, arguments.seed))


if __name__ == "__main__":
    main()
