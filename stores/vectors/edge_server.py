"""The embedded vector engine as a process: `python -m stores.vectors.edge_server`.

qdrant-edge holds the GIL while it works, so it must not share a process with a service. Here it is
called right on the loop: a thread would wait for the same lock, and one thread is what it wants.
"""

import argparse
import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from grpc.aio import ServicerContext
from numpy.typing import NDArray

from edge.v1 import vectors_pb2, vectors_pb2_grpc
from mesh.errors import InvalidArgument
from mesh.lifecycle import until_stopped
from mesh.packing import DIMENSIONS, unpack
from mesh.process import run
from mesh.server import GrpcServer
from mesh.settings import Settings
from stores.vectors.edge_engine import Engine

# Points written before waiting searches get their turn; about 12 ms.
SLICE = 500
FLUSH_EVERY_S = 5.0
# sockaddr_un's size, less the end of the string.
MAX_SOCKET_PATH = 107

Context: TypeAlias = "ServicerContext[Any, Any]"
_log = logging.getLogger(__name__)


class VectorService(vectors_pb2_grpc.VectorServiceServicer):
    """edge.v1.VectorService over an engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    async def Upsert(
        self, request: vectors_pb2.UpsertRequest, context: Context
    ) -> vectors_pb2.UpsertResponse:
        vectors = _checked(request)
        for start in range(0, len(vectors), SLICE):
            part = slice(start, start + SLICE)
            self._engine.upsert(
                request.post_ids[part],
                request.author_ids[part],
                request.created_at_ms[part],
                [tags.tags for tags in request.tags[part]],
                vectors[part],
            )
            await asyncio.sleep(0)
        return vectors_pb2.UpsertResponse()

    async def Delete(
        self, request: vectors_pb2.DeleteRequest, context: Context
    ) -> vectors_pb2.DeleteResponse:
        self._engine.delete(request.post_ids)
        return vectors_pb2.DeleteResponse()

    async def Search(
        self, request: vectors_pb2.SearchRequest, context: Context
    ) -> vectors_pb2.SearchResponse:
        vector = unpack(request.vector)
        if vector is None:
            raise InvalidArgument("a search needs a vector", fields={"vector": "is empty"})
        if request.limit == 0:
            raise InvalidArgument("a search needs a limit", fields={"limit": "must be above 0"})
        found = self._engine.search(
            vector,
            request.limit,
            request.created_after_ms,
            request.excluded_author_ids,
            request.exact,
        )
        return vectors_pb2.SearchResponse(
            post_ids=found.post_ids, author_ids=found.author_ids, scores=found.scores
        )

    async def Retrieve(
        self, request: vectors_pb2.RetrieveRequest, context: Context
    ) -> vectors_pb2.RetrieveResponse:
        post_ids, vectors = self._engine.retrieve(request.post_ids)
        return vectors_pb2.RetrieveResponse(
            post_ids=post_ids, vectors=vectors.astype("<f4", copy=False).tobytes()
        )

    async def Count(
        self, request: vectors_pb2.CountRequest, context: Context
    ) -> vectors_pb2.CountResponse:
        return vectors_pb2.CountResponse(count=self._engine.count())

    async def Optimize(
        self, request: vectors_pb2.OptimizeRequest, context: Context
    ) -> vectors_pb2.OptimizeResponse:
        self._engine.optimize()
        return vectors_pb2.OptimizeResponse()


async def serve(where: Path | str, data: Path, settings: Settings) -> None:
    """Serves the vectors in `data` until the process is told to stop.

    Args:
        where: A unix socket's path, or HOST:PORT.
        data: Folder of the vectors.
        settings: Of this process.

    Raises:
        OSError: The socket's path is too long, or another process has `data` open.
    """
    if isinstance(where, Path):
        _check_length(where)
    with closing(Engine(data)) as engine:
        if isinstance(where, Path):
            # Nobody else serves this data, so a socket that is there was left by a killed process.
            await asyncio.to_thread(_make_way, where)
        target = f"unix:{where}" if isinstance(where, Path) else where
        service = (
            vectors_pb2_grpc.add_VectorServiceServicer_to_server,
            VectorService(engine),
            "edge.v1.VectorService",
        )
        async with GrpcServer("vectors", target, [service], settings), _kept(engine):
            await until_stopped()


@asynccontextmanager
async def _kept(engine: Engine) -> AsyncIterator[None]:
    """Within the block, the engine is flushed every few seconds, and optimized when that is due."""

    async def keep() -> None:
        while True:
            await asyncio.sleep(FLUSH_EVERY_S)
            try:
                if engine.optimize_is_due:
                    engine.optimize()
                engine.flush()
            except Exception:
                _log.exception("upkeep of the vectors failed; it is tried again")

    keeper = asyncio.create_task(keep())
    try:
        yield
    finally:
        keeper.cancel()
        with suppress(asyncio.CancelledError):
            await keeper


def _check_length(socket: Path) -> None:
    length = len(bytes(socket))
    if length > MAX_SOCKET_PATH:
        raise OSError(
            f"the socket's path has {length} bytes, {MAX_SOCKET_PATH} are possible: {socket}; "
            "choose a shorter one by FEED_DATA_DIR or FEED_VECTORS_URL"
        )


def _make_way(socket: Path) -> None:
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)


def _checked(request: vectors_pb2.UpsertRequest) -> NDArray[np.float32]:
    """The vectors, of shape (posts, 384). Raises `InvalidArgument` on columns that do not fit."""
    posts = len(request.post_ids)
    lengths = {
        "author_ids": len(request.author_ids),
        "created_at_ms": len(request.created_at_ms),
        "tags": len(request.tags),
        "vectors": len(request.vectors) / (4 * DIMENSIONS),
    }
    wrong = {name: f"has {n:g}" for name, n in lengths.items() if n != posts}
    if wrong:
        raise InvalidArgument(f"the columns are not of {posts} posts each", fields=wrong)
    vectors = np.frombuffer(request.vectors, "<f4").reshape(posts, DIMENSIONS)
    if not np.isfinite(vectors).all():
        raise InvalidArgument("a vector is not finite", fields={"vectors": "has nan or infinity"})
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves the embedded vector engine.")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--socket", type=Path, help="unix socket to listen on")
    where.add_argument("--listen", metavar="HOST:PORT", help="what else to listen on")
    parser.add_argument("--data", type=Path, required=True, help="folder of the vectors")
    arguments = parser.parse_args()
    run("vectors", partial(serve, arguments.socket or arguments.listen, arguments.data))


if __name__ == "__main__":
    main()
