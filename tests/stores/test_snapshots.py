"""What every snapshot store does."""

from collections.abc import Awaitable, Callable

import pytest
from redis.asyncio import Redis

from mesh.errors import Unavailable
from stores.redis_client import open_redis
from stores.snapshots.port import SnapshotStore
from stores.snapshots.redis import RedisSnapshotStore
from tests.eventually import eventually
from tests.fixtures.valkey import free_port


@pytest.fixture(params=["redis", "cluster"])
def snapshots(request: pytest.FixtureRequest) -> SnapshotStore:
    client: Redis = request.getfixturevalue(f"empty_{request.param}")
    return RedisSnapshotStore(client)


async def test_a_snapshot_comes_back_byte_for_byte(snapshots: SnapshotStore) -> None:
    snapshot = bytes(range(256)) * 100
    await snapshots.save("f1", snapshot, ttl_s=60)
    assert await snapshots.load("f1") == snapshot


async def test_one_that_was_never_saved_is_none(snapshots: SnapshotStore) -> None:
    assert await snapshots.load("unknown") is None


async def test_saving_again_replaces(snapshots: SnapshotStore) -> None:
    await snapshots.save("f1", b"old", ttl_s=60)
    await snapshots.save("f1", b"", ttl_s=60)
    assert await snapshots.load("f1") == b""


async def test_it_expires(snapshots: SnapshotStore) -> None:
    await snapshots.save("f1", b"x", ttl_s=1)

    async def is_gone() -> bool:
        return await snapshots.load("f1") is None

    gone: Callable[[], Awaitable[bool]] = is_gone
    expired: bool = await eventually(gone, within_s=3)
    assert expired


async def test_redis_that_is_away_is_unavailable() -> None:
    async with open_redis(f"redis://127.0.0.1:{free_port()}/0") as away:
        with pytest.raises(Unavailable):
            await RedisSnapshotStore(away).save("f1", b"x", 1)
        with pytest.raises(Unavailable):
            await RedisSnapshotStore(away).load("f1")
