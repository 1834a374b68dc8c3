"""Vectors in a Qdrant server, by gRPC."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self
from urllib.parse import parse_qsl, urlsplit

import grpc
import numpy as np
from qdrant_client import AsyncQdrantClient
from qdrant_client.context_headers import headers
from qdrant_client.models import (
    CollectionInfo,
    Distance,
    FieldCondition,
    Filter,
    HnswConfigDiff,
    IntegerIndexParams,
    IntegerIndexType,
    KeywordIndexParams,
    KeywordIndexType,
    MatchAny,
    PayloadSchemaParams,
    PayloadSelectorInclude,
    PointIdsList,
    PointStruct,
    QuantizationSearchParams,
    Range,
    ScalarQuantization,
    ScalarQuantizationConfig,
    ScalarType,
    SearchParams,
    VectorParams,
)

from mesh import db_rpc
from mesh.db_spans import Attributes
from mesh.errors import FailedPrecondition
from mesh.packing import DIMENSIONS, Vector
from stores.vectors.port import Hit, PostVector

_SEARCH_S, _WRITE_S, _MAKE_S = 1.0, 10.0, 10.0
# Points a message: a second's work at most, and 1 MB.
_BATCH = 500
# More neighbours a point than usual, since most searches are filtered.
_HNSW = HnswConfigDiff(m=16, ef_construct=128)
_SEARCHED = 256
# Bytes instead of floats are what searches walk over; the floats then put the best in order.
_QUANTIZED = ScalarQuantization(
    scalar=ScalarQuantizationConfig(type=ScalarType.INT8, quantile=0.99, always_ram=True)
)
_RESCORED = QuantizationSearchParams(rescore=True, oversampling=2.0)
_INDEXED: dict[str, PayloadSchemaParams] = {
    "author_id": IntegerIndexParams(type=IntegerIndexType.INTEGER, lookup=True, range=False),
    "created_at_ms": IntegerIndexParams(type=IntegerIndexType.INTEGER, lookup=False, range=True),
    "tags": KeywordIndexParams(type=KeywordIndexType.KEYWORD),
}


@dataclass(frozen=True, slots=True)
class Location:
    """What FEED_VECTORS_URL says: `qdrant://HOST:PORT[/COLLECTION][?api_key=]`; qdrants:// is TLS.

    The port is that of gRPC, 6334 unless told; the collection is "posts" unless told.
    """

    host: str
    port: int
    collection: str
    api_key: str | None
    is_secure: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError, which says what is wrong with FEED_VECTORS_URL, and no secret."""
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query))
        collection = parts.path.strip("/") or "posts"
        if not parts.hostname or "/" in collection or options.keys() - {"api_key"}:
            raise ValueError(
                "FEED_VECTORS_URL is not of the form qdrant://HOST:PORT/COLLECTION?api_key=KEY"
            )
        return cls(
            host=parts.hostname,
            port=parts.port or 6334,
            collection=collection,
            api_key=options.get("api_key"),
            is_secure=parts.scheme == "qdrants",
        )


class QdrantVectorStore:
    """`stores.vectors.port.VectorStore` in one collection, which is made when it is not there.

    A collection of other vectors is refused by `FailedPrecondition`.

    Args:
        location: Where the collection is.
    """

    def __init__(self, location: Location) -> None:
        self._collection = location.collection
        self._client = AsyncQdrantClient(
            host=location.host,
            grpc_port=location.port,
            prefer_grpc=True,
            https=location.is_secure,
            headers={"api-key": location.api_key} if location.api_key else None,
            # Would ask by REST, which is another port.
            check_compatibility=False,
            grpc_options={
                # A server that comes back must be found within a second, not within two minutes.
                "grpc.initial_reconnect_backoff_ms": 100,
                "grpc.max_reconnect_backoff_ms": 1000,
            },
        )
        self._database = db_rpc.database(
            "qdrant", f"{location.host}:{location.port}", db_collection_name=location.collection
        )
        self._making = asyncio.Lock()
        self._is_made = False

    async def upsert(self, vectors: Sequence[PostVector]) -> None:
        for start in range(0, len(vectors), _BATCH):
            points = [_point(each) for each in vectors[start : start + _BATCH]]
            async with self._call("upsert", _WRITE_S, {"db.operation.batch.size": len(points)}):
                await self._client.upsert(self._collection, points, wait=True)

    async def delete(self, post_ids: Sequence[int]) -> None:
        if not post_ids:
            return
        async with self._call("delete", _WRITE_S, {"db.operation.batch.size": len(post_ids)}):
            selected = PointIdsList(points=list(post_ids))
            await self._client.delete(self._collection, selected, wait=True)

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
        async with self._call("query", _SEARCH_S, {}):
            found = await self._client.query_points(
                self._collection,
                vector.tolist(),
                query_filter=_filter(created_after_ms, excluded_author_ids),
                search_params=SearchParams(
                    exact=exact,
                    hnsw_ef=max(_SEARCHED, limit),
                    quantization=QuantizationSearchParams(ignore=True) if exact else _RESCORED,
                ),
                limit=limit,
                with_payload=PayloadSelectorInclude(include=["author_id"]),
            )
        return [
            Hit(int(point.id), int((point.payload or {})["author_id"]), point.score)
            for point in found.points
        ]

    async def retrieve(self, post_ids: Sequence[int]) -> dict[int, Vector]:
        found: dict[int, Vector] = {}
        for start in range(0, len(post_ids), _BATCH):
            ids = list(post_ids[start : start + _BATCH])
            async with self._call("retrieve", _SEARCH_S, {"db.operation.batch.size": len(ids)}):
                records = await self._client.retrieve(
                    self._collection, ids, with_payload=False, with_vectors=True
                )
            found.update((int(each.id), np.asarray(each.vector, np.float32)) for each in records)
        return found

    async def count(self) -> int:
        async with self._call("count", _SEARCH_S, {}):
            return (await self._client.count(self._collection, exact=True)).count

    async def optimize(self) -> None:
        """The server does that by itself."""

    async def close(self) -> None:
        await self._client.close()

    # -- the collection -----------------------------------------------------------------------

    @asynccontextmanager
    async def _call(self, name: str, at_most_s: float, more: Attributes) -> AsyncIterator[None]:
        """A call to the collection, which is there by then."""
        if not self._is_made:
            await self._make()
        try:
            async with self._ask(name, at_most_s, more):
                yield
        except Exception:
            # It may be another server by now, or an emptied one: look again the next time.
            self._is_made = False
            raise

    @asynccontextmanager
    async def _ask(self, name: str, at_most_s: float, more: Attributes) -> AsyncIterator[None]:
        summary = f"{name} {self._collection}"
        async with db_rpc.calling(self._database, name, summary, at_most_s, more) as trace_headers:
            with headers(dict(trace_headers)):
                yield

    async def _make(self) -> None:
        async with self._making:
            if self._is_made:
                return
            found = await self._find()
            if found is None:
                await self._create()
                found = await self._find()
            if found is not None:
                self._verify(found)
                for field, schema in _INDEXED.items():
                    if field not in found.payload_schema:
                        async with self._ask("create index", _MAKE_S, {}):
                            await self._client.create_payload_index(
                                self._collection, field, schema, wait=True
                            )
            self._is_made = found is not None

    async def _find(self) -> CollectionInfo | None:
        async with self._ask("describe", _MAKE_S, {}):
            try:
                return await self._client.get_collection(self._collection)
            except grpc.aio.AioRpcError as error:
                if error.code() != grpc.StatusCode.NOT_FOUND:
                    raise
                return None

    async def _create(self) -> None:
        async with self._ask("create", _MAKE_S, {}):
            try:
                await self._client.create_collection(
                    self._collection,
                    vectors_config=VectorParams(size=DIMENSIONS, distance=Distance.COSINE),
                    hnsw_config=_HNSW,
                    quantization_config=_QUANTIZED,
                )
            except grpc.aio.AioRpcError as error:
                # Another process was first; it says so by either code.
                if error.code() not in _IS_THERE or "already exists" not in (error.details() or ""):
                    raise

    def _verify(self, found: CollectionInfo) -> None:
        vectors = found.config.params.vectors
        if not isinstance(vectors, VectorParams) or (vectors.size, vectors.distance) != (
            DIMENSIONS,
            Distance.COSINE,
        ):
            raise FailedPrecondition(
                f"Qdrant's collection {self._collection} is not of {DIMENSIONS}-d cosine vectors"
            )


_IS_THERE = (grpc.StatusCode.ALREADY_EXISTS, grpc.StatusCode.INVALID_ARGUMENT)


def _point(vector: PostVector) -> PointStruct:
    return PointStruct(
        id=vector.post_id,
        vector=vector.embedding.tolist(),
        payload={
            "author_id": vector.author_id,
            "created_at_ms": vector.created_at_ms,
            "tags": list(vector.tags),
        },
    )


def _filter(created_after_ms: int, excluded_author_ids: Sequence[int]) -> Filter:
    excluded = MatchAny(any=list(excluded_author_ids))
    return Filter(
        must=[FieldCondition(key="created_at_ms", range=Range(gte=float(created_after_ms)))],
        must_not=[FieldCondition(key="author_id", match=excluded)] if excluded_author_ids else None,
    )
