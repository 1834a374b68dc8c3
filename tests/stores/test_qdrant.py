"""What Qdrant does beside what every vector store does; a server is needed for some of it."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from qdrant_client.models import Distance, HnswConfig, PayloadSchemaType, VectorParams

from mesh import deadlines, telemetry
from mesh.errors import FailedPrecondition, Internal, Unavailable
from mesh.packing import DIMENSIONS
from mesh.settings import Settings
from stores.connect import Connections
from stores.vectors.port import PostVector
from stores.vectors.qdrant import Location, QdrantVectorStore
from tests.fixtures.qdrant import client_of, opened
from tests.fixtures.spans import attribute
from tests.fixtures.world import free_ports

ONE = PostVector(2**62 + 1, 7, 1_000, ("tag",), np.full(DIMENSIONS, DIMENSIONS**-0.5, np.float32))


# -- the URL ----------------------------------------------------------------------------------


def test_the_url_says_where_the_collection_is() -> None:
    at = Location.parse("qdrants://vectors.example:7000/mine?api_key=k%2Fey")
    assert at == Location("vectors.example", 7000, "mine", "k/ey", is_secure=True)
    assert Location.parse("qdrant://h") == Location("h", 6334, "posts", None, is_secure=False)


@pytest.mark.parametrize("url", ["qdrant://", "qdrant://h/a/b", "qdrant://h/a?key=typo"])
async def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    async with Connections(Settings(vectors_url=url)) as stores:
        with pytest.raises(ValueError, match="FEED_VECTORS_URL"):
            stores.vectors()


async def test_the_scheme_picks_the_adapter() -> None:
    async with Connections(Settings(vectors_url="qdrant://127.0.0.1:1/x")) as stores:
        assert isinstance(stores.vectors(), QdrantVectorStore)


# -- failures ---------------------------------------------------------------------------------


async def test_nobody_there_is_unavailable(spans: InMemorySpanExporter) -> None:
    [port] = free_ports(1)
    async with opened(f"qdrant://127.0.0.1:{port}/x") as store:
        with pytest.raises(Unavailable), deadlines.within(5):
            await store.count()
    [span] = spans.get_finished_spans()
    assert (span.kind, span.status.status_code) == (SpanKind.CLIENT, StatusCode.ERROR)
    assert attribute(span, "error.type") in ("UNAVAILABLE", "DEADLINE_EXCEEDED")


async def test_a_server_that_does_not_answer_is_given_up_at_the_deadline() -> None:
    async def hold(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        await reader.read()

    async with await asyncio.start_server(hold, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with opened(f"qdrant://127.0.0.1:{port}/x") as store:
            began = time.monotonic()
            with pytest.raises(Unavailable), deadlines.within(0.3):
                await store.search(ONE.embedding, limit=1, created_after_ms=0)
            assert time.monotonic() - began < 10


async def test_a_call_tells_the_server_of_its_trace_and_its_key(
    spans: InMemorySpanExporter,
) -> None:
    """A server that refuses everything, and keeps what it was told."""
    told: list[dict[str, str]] = []

    class Refusing(grpc.GenericRpcHandler):
        def service(
            self, details: grpc.HandlerCallDetails
        ) -> "grpc.RpcMethodHandler[object, bytes]":
            told.append({key: str(value) for key, value in details.invocation_metadata})

            def refuse(_: object, context: grpc.ServicerContext) -> bytes:
                context.abort(grpc.StatusCode.PERMISSION_DENIED, "no")
                raise AssertionError

            return grpc.unary_unary_rpc_method_handler(refuse)

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Refusing()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        async with opened(f"qdrant://127.0.0.1:{port}/x?api_key=secret") as store:
            with telemetry.span("the search"), pytest.raises(Internal):
                await store.count()
    finally:
        server.stop(None)
    call, _ = spans.get_finished_spans()
    assert attribute(call, "error.type") == "PERMISSION_DENIED"
    assert attribute(call, "db.response.status_code") == "PERMISSION_DENIED"
    assert call.context is not None
    assert told[0]["traceparent"].split("-")[2] == trace.format_span_id(call.context.span_id)
    assert told[0]["api-key"] == "secret"


# -- the collection ---------------------------------------------------------------------------


async def test_the_collection_is_made_as_searches_need_it(qdrant_url: str) -> None:
    at = Location.parse(qdrant_url)
    async with opened(qdrant_url) as store:
        assert await store.count() == 0
    client = client_of(at)
    made = await client.get_collection(at.collection)
    await client.close()
    vectors, hnsw = made.config.params.vectors, made.config.hnsw_config
    assert isinstance(vectors, VectorParams)
    assert (vectors.size, vectors.distance) == (DIMENSIONS, Distance.COSINE)
    assert isinstance(hnsw, HnswConfig)
    assert (hnsw.m, hnsw.ef_construct) == (16, 128)
    quantized = made.config.quantization_config
    assert quantized is not None
    assert quantized.scalar.type == "int8"  # type: ignore[union-attr]
    assert quantized.scalar.always_ram  # type: ignore[union-attr]
    assert {field: index.data_type for field, index in made.payload_schema.items()} == {
        "author_id": PayloadSchemaType.INTEGER,
        "created_at_ms": PayloadSchemaType.INTEGER,
        "tags": PayloadSchemaType.KEYWORD,
    }


async def test_several_processes_may_make_it_at_once(qdrant_url: str) -> None:
    stores = [QdrantVectorStore(Location.parse(qdrant_url)) for _ in range(4)]
    assert await asyncio.gather(*(store.count() for store in stores)) == [0] * 4
    for store in stores:
        await store.close()


async def test_a_collection_of_other_vectors_is_refused(qdrant_url: str) -> None:
    at = Location.parse(qdrant_url)
    client = client_of(at)
    await client.create_collection(
        at.collection, vectors_config=VectorParams(size=3, distance=Distance.DOT)
    )
    await client.close()
    async with opened(qdrant_url) as store:
        for _ in range(2):
            with pytest.raises(FailedPrecondition):
                await store.upsert([ONE])


async def test_a_collection_that_was_dropped_is_made_again(qdrant_url: str) -> None:
    at = Location.parse(qdrant_url)
    async with opened(qdrant_url) as store:
        await store.upsert([ONE])
        client = client_of(at)
        await client.delete_collection(at.collection)
        await client.close()
        with pytest.raises(Internal):
            await store.count()
        assert await store.count() == 0


async def test_each_call_is_a_client_span(qdrant_url: str, spans: InMemorySpanExporter) -> None:
    at = Location.parse(qdrant_url)
    async with opened(qdrant_url) as store:
        await store.upsert([ONE])
        spans.clear()
        await store.search(ONE.embedding, limit=1, created_after_ms=0, excluded_author_ids=[123456])
        await store.delete([ONE.post_id])
    search, delete = spans.get_finished_spans()
    assert search.name == f"query {at.collection}"
    assert search.kind == SpanKind.CLIENT
    assert attribute(search, "db.system.name") == "qdrant"
    assert attribute(search, "db.operation.name") == "query"
    assert attribute(search, "db.collection.name") == at.collection
    assert attribute(search, "server.port") == at.port
    assert "123456" not in str(search.attributes)
    assert attribute(delete, "db.operation.batch.size") == 1
