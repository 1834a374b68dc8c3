"""Vectors in the embedded engine, which is a process of its own (`edge_server`)."""

from collections.abc import Sequence

import numpy as np

from edge.v1 import vectors_pb2, vectors_pb2_grpc
from mesh.channels import call, open_channel
from mesh.packing import DIMENSIONS, Vector, pack
from stores.vectors.port import Hit, PostVector

SEARCH_S, WRITE_S, OPTIMIZE_S = 1.0, 10.0, 600.0
# Posts a message; 3 MB, far below the limit of a message and of a second's work.
BATCH = 2_000


class EdgeVectorStore:
    """Client of `edge.v1.VectorService`.

    Args:
        target: As gRPC knows it, e.g. unix:.feed/vectors.sock.
    """

    def __init__(self, target: str) -> None:
        self._channel = open_channel(target)
        self._stub = vectors_pb2_grpc.VectorServiceStub(self._channel)

    async def upsert(self, vectors: Sequence[PostVector]) -> None:
        for start in range(0, len(vectors), BATCH):
            batch = vectors[start : start + BATCH]
            request = vectors_pb2.UpsertRequest(
                post_ids=[each.post_id for each in batch],
                author_ids=[each.author_id for each in batch],
                created_at_ms=[each.created_at_ms for each in batch],
                tags=[vectors_pb2.TagList(tags=each.tags) for each in batch],
                vectors=b"".join(pack(each.embedding) for each in batch),
            )
            await call(self._stub.Upsert, request, timeout=WRITE_S)

    async def delete(self, post_ids: Sequence[int]) -> None:
        if post_ids:
            request = vectors_pb2.DeleteRequest(post_ids=post_ids)
            await call(self._stub.Delete, request, timeout=WRITE_S)

    async def search(
        self,
        vector: Vector,
        *,
        limit: int,
        created_after_ms: int,
        excluded_author_ids: Sequence[int] = (),
        exact: bool = False,
    ) -> list[Hit]:
        if limit <= 0:
            return []
        request = vectors_pb2.SearchRequest(
            vector=pack(vector),
            limit=limit,
            created_after_ms=max(created_after_ms, 0),
            excluded_author_ids=excluded_author_ids,
            exact=exact,
        )
        found = await call(self._stub.Search, request, timeout=SEARCH_S)
        return [
            Hit(post_id, author_id, score)
            for post_id, author_id, score in zip(
                found.post_ids, found.author_ids, found.scores, strict=True
            )
        ]

    async def retrieve(self, post_ids: Sequence[int]) -> dict[int, Vector]:
        found: dict[int, Vector] = {}
        for start in range(0, len(post_ids), BATCH):
            request = vectors_pb2.RetrieveRequest(post_ids=post_ids[start : start + BATCH])
            answer = await call(self._stub.Retrieve, request, timeout=SEARCH_S)
            vectors = np.frombuffer(answer.vectors, "<f4").reshape(-1, DIMENSIONS)
            found.update(zip(answer.post_ids, vectors, strict=True))
        return found

    async def count(self) -> int:
        answer = await call(self._stub.Count, vectors_pb2.CountRequest(), timeout=SEARCH_S)
        return answer.count

    async def optimize(self) -> None:
        await call(self._stub.Optimize, vectors_pb2.OptimizeRequest(), timeout=OPTIMIZE_S)

    async def close(self) -> None:
        await self._channel.close()
