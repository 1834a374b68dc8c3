"""Features by way of Feast when it does not do what it should: no server is needed for that."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from redis.asyncio import Redis

from mesh import deadlines
from mesh.degrade import best_effort
from mesh.errors import FeedError, Unavailable
from stores.features.feast import FeastFeatureStore
from stores.features.feast_client import FeastClient
from stores.features.feast_push import FeastPusher, vector_json
from stores.features.port import FeatureStore, PostFeatures, UserFeatures
from stores.redis_client import open_redis
from tests.eventually import eventually
from tests.fixtures.feast import PATIENT_S, feast_client
from tests.fixtures.gate import Gate, gate_to
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.fixtures.valkey import free_port
from tests.stores.test_features import unit_vector


class Feast:
    """An HTTP server in Feast's place, which answers what the test says."""

    def __init__(self) -> None:
        self.url = ""
        self.status = 200
        # To a request's path and body; None for no answer at all.
        self.answer: Callable[[str, Any], object] = lambda path, body: {}
        self.asked: list[tuple[str, Any]] = []
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().partition("content-length: ")[2].split()[0])
                body = json.loads(await reader.readexactly(length))
                path = head.split()[1]
                self.heads.append(head)
                self.asked.append((path, body))
                answer = self.answer(path, body)
                if answer is None:
                    await asyncio.sleep(PATIENT_S)
                text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
                writer.write(
                    f"HTTP/1.1 {self.status} Text\r\ncontent-length: {len(text)}\r\n\r\n".encode()
                    + text
                )
        except (asyncio.IncompleteReadError, OSError):
            writer.close()


def columns(body: Any, **values: list[Any]) -> object:
    """An answer of Feast, its columns in another order than asked."""
    names = [*body["entities"], *reversed(values)]
    everything = {**body["entities"], **values}
    return {
        "metadata": {"feature_names": names},
        "results": [{"values": everything[name]} for name in names],
    }


@pytest.fixture
async def feast() -> AsyncIterator[Feast]:
    feast = Feast()
    async with await asyncio.start_server(feast.serve, "127.0.0.1", 0) as server:
        feast.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        yield feast
        server.close_clients() if hasattr(server, "close_clients") else None


@asynccontextmanager
async def store_at(
    url: str, redis: Redis, read_timeout_s: float = PATIENT_S
) -> AsyncIterator[FeastFeatureStore]:
    async with feast_client(url, read_timeout_s) as client:
        yield FeastFeatureStore(redis, client)


async def read(store: FeatureStore, post_ids: list[int]) -> tuple[list[Any], list[str]]:
    """What the store knows of posts, and what it went on without."""
    degraded: list[str] = []
    found = await best_effort(
        store.posts(post_ids), [], backend="test", degraded=degraded, timeout_s=PATIENT_S
    )
    return found, degraded


async def put(store: FeatureStore, post_id: int) -> PostFeatures:
    await store.put_post(post_id, author_id=7, has_media=True)
    await store.put_like_counts({post_id: 3})
    return PostFeatures(7, 3, True, 0, None)
