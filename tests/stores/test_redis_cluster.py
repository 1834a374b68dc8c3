"""A cluster of three masters: where commands go, slots that move, masters that are away."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from redis.asyncio import Redis
from redis.crc import key_slot
from redis.exceptions import RedisError, ResponseError

from mesh.errors import Unavailable
from stores.mailboxes.port import CAPACITY, Box
from stores.mailboxes.redis import RedisMailboxStore
from stores.redis_client import open_redis
from stores.redis_cluster import RedisCluster
from tests.eventually import eventually
from tests.fixtures.spans import attribute
from tests.fixtures.sql import fresh_ids
from tests.fixtures.valkey import ValkeyCluster


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[ValkeyCluster]:
    """A cluster of the test's own, which it may break."""
    cluster = ValkeyCluster(tmp_path)
    await cluster.start()
    yield cluster
    await cluster.stop()


def of_each_master(count: int) -> list[list[str]]:
    """So many keys of each third of the slots."""
    keys: list[list[str]] = [[], [], []]
    for number in range(count * 40):
        third = keys[key_slot(f"{{{number}}}".encode()) * 3 // 16384]
        if len(third) < count:
            third.append(f"mailbox:{{{number}}}")
    assert all(len(third) == count for third in keys)
    return keys


async def test_a_pipeline_is_one_a_master_and_answers_in_order(
    empty_cluster: Redis, spans: InMemorySpanExporter
) -> None:
    keys = [key for third in zip(*of_each_master(20), strict=True) for key in third]
    await empty_cluster.ping()  # type: ignore[misc]
    spans.clear()
    async with empty_cluster.pipeline(transaction=False) as pipe:
        for number, key in enumerate(keys):
            pipe.set(key, number)
            pipe.get(key)
        replies = await pipe.execute()
    assert replies == [each for n in range(60) for each in (True, str(n).encode())]
    sent = [span for span in spans.get_finished_spans() if span.kind is SpanKind.CLIENT]
    assert {span.name for span in sent} == {"PIPELINE mailbox"}
    assert [attribute(span, "db.operation.batch.size") for span in sent] == [40, 40, 40]
    assert len({attribute(span, "server.port") for span in sent}) == 3


async def test_one_commands_error_is_told_after_all_have_run(empty_cluster: Redis) -> None:
    [a], [b], [c] = of_each_master(1)
    await empty_cluster.set(b, "a string")
    async with empty_cluster.pipeline(transaction=False) as pipe:
        pipe.set(a, 1)
        pipe.lpush(b, "alice")
        pipe.set(c, 1)
        with pytest.raises(ResponseError) as caught:
            await pipe.execute()
    assert "alice" not in str(caught.value)
    assert [await empty_cluster.get(key) for key in (a, c)] == [b"1", b"1"]


async def test_a_transaction_is_of_one_slot(empty_cluster: Redis) -> None:
    [a], [b], _ = of_each_master(1)
    async with empty_cluster.pipeline(transaction=True) as pipe:
        pipe.set(a, 1)
        pipe.set(b, 1)
        with pytest.raises(RedisError):
            await pipe.execute()
    assert await empty_cluster.get(a) is None


async def test_a_slot_that_moves_is_followed(own: ValkeyCluster) -> None:
    [key, *_], *_ = of_each_master(1)
    slot = key_slot(key[key.index("{") + 1 : -1].encode())
    cluster = open_redis(own.url)
    source, target = (Redis.from_url(master.url) for master in own.masters[:2])
    ids = [(await node.cluster("MYID")).decode() for node in (source, target)]
    await cluster.set(key, "before")

    # Half-way: the source sends on whoever asks for what it does not have.
    await target.cluster("SETSLOT", slot, "IMPORTING", ids[0])
    await source.cluster("SETSLOT", slot, "MIGRATING", ids[1])
    other = key.replace("mailbox", "authored")
    assert await cluster.get(key) == b"before"
    await cluster.set(other, "asked")
    async with cluster.pipeline(transaction=False) as pipe:
        pipe.get(key)
        pipe.get(other)
        assert await pipe.execute() == [b"before", b"asked"]

    host, port = own.masters[1].url.split("/")[2].split(":")
    await source.migrate(host, int(port), key, 0, 1000)
    for node in (target, source):
        await node.cluster("SETSLOT", slot, "NODE", ids[1])
    assert await cluster.get(key) == b"before"
    async with cluster.pipeline(transaction=False) as pipe:
        pipe.get(key)
        pipe.get(other)
        assert await pipe.execute() == [b"before", b"asked"]
    async with cluster.pipeline(transaction=True) as pipe:
        pipe.set(key, "after")
        pipe.get(other)
        assert await pipe.execute() == [True, b"asked"]
    for client in (cluster, source, target):
        await client.aclose()


async def test_without_one_master_the_others_go_on_and_it_comes_back(own: ValkeyCluster) -> None:
    client = open_redis(own.url)
    store = RedisMailboxStore(client)
    boxes = [Box("mailbox", int(third[0].partition("{")[2][:-1])) for third in of_each_master(1)]
    for box in boxes:
        await store.finish_build(box, [7])
    await own.masters[0].stop()

    async def is_away() -> bool:
        try:
            await store.newest(boxes[:1], 10)
        except Unavailable:
            return True
        return False

    assert await is_away()
    with pytest.raises(Unavailable):
        await store.push(boxes, [8])
    # What the others have, they say; also when the first place to ask for the map is the lost one.
    assert await store.newest(boxes[1:], 10) == [[8, 7], [8, 7]]
    fresh = open_redis(own.url)
    assert await RedisMailboxStore(fresh).newest(boxes[1:], 10) == [[8, 7], [8, 7]]
    await fresh.aclose()

    await own.masters[0].start()

    async def is_back() -> bool:
        return not await is_away()

    assert await eventually(is_back, within_s=30)
    assert await store.push(boxes, [9]) == 3
    assert await store.newest(boxes, 10) == [[9, 7], [9, 8, 7], [9, 8, 7]]
    await client.aclose()


async def test_cancelled_commands_leave_connections_for_others(empty_cluster: Redis) -> None:
    assert isinstance(empty_cluster, RedisCluster)
    keys = [key for third in of_each_master(50) for key in third]
    for _ in range(5):
        tasks = [asyncio.create_task(empty_cluster.set(key, key)) for key in keys]  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.gather(*(empty_cluster.get(key) for key in keys[:3]))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.gather(*(empty_cluster.set(key, key) for key in keys))
    assert await asyncio.gather(*(empty_cluster.get(key) for key in keys)) == [
        key.encode() for key in keys
    ]


async def test_a_full_mailbox_has_a_bound_in_memory(empty_cluster: Redis) -> None:
    """docs/decisions/0014 gives the number; this holds it true."""
    store, [owner] = RedisMailboxStore(empty_cluster), fresh_ids(1)
    box = Box("mailbox", owner)
    await store.finish_build(box, fresh_ids(2 * CAPACITY))
    await store.push([box], fresh_ids(100))
    assert await empty_cluster.zcard(f"mailbox:{{{owner}}}") == CAPACITY + 1
    used = await empty_cluster.memory_usage(f"mailbox:{{{owner}}}", samples=0)
    assert used is not None
    assert 0 < used < 80_000
