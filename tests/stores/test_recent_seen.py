"""What every short memory of impressions does."""

import pytest
from redis.asyncio import Redis

from mesh.errors import Unavailable
from mesh.ids import now_ms
from stores.impressions.port import RecentSeen, Seen
from stores.impressions.redis import RedisRecentSeen
from stores.redis_client import open_redis
from tests.fixtures.sql import fresh_id
from tests.fixtures.valkey import free_port


@pytest.fixture(params=["redis", "cluster"])
def recent(request: pytest.FixtureRequest) -> RecentSeen:
    client: Redis = request.getfixturevalue(f"empty_{request.param}")
    return RedisRecentSeen(client)


async def test_nobody_has_seen_anything_at_first(recent: RecentSeen) -> None:
    assert await recent.seen(fresh_id()) == []
    await recent.record(1, [], now_ms())
    assert await recent.seen(1) == []


async def test_what_was_seen_is_counted_the_latest_first(recent: RecentSeen) -> None:
    reader, now = fresh_id(), now_ms()
    await recent.record(reader, [10, 20], now - 3_000)
    await recent.record(reader, [10], now - 1_000)
    await recent.record(reader, [30], now - 2_000)
    assert await recent.seen(reader) == [
        Seen(10, 2, now - 1_000),
        Seen(30, 1, now - 2_000),
        Seen(20, 1, now - 3_000),
    ]


async def test_readers_are_kept_apart(recent: RecentSeen) -> None:
    now = now_ms()
    await recent.record(1, [10], now)
    assert await recent.seen(2) == []


async def test_a_report_that_is_repeated_counts_once(recent: RecentSeen) -> None:
    reader, now = fresh_id(), now_ms()
    for _ in range(3):
        await recent.record(reader, [10, 10], now)
    assert await recent.seen(reader) == [Seen(10, 1, now)]


async def test_what_was_seen_long_ago_is_forgotten(recent: RecentSeen) -> None:
    reader, now = fresh_id(), now_ms()
    await recent.record(reader, [10], now - 16 * 60_000)
    assert await recent.seen(reader) == []
    await recent.record(reader, [20], now)
    assert await recent.seen(reader) == [Seen(20, 1, now)]


async def test_redis_forgets_readers_who_are_gone(empty_redis: Redis) -> None:
    await RedisRecentSeen(empty_redis).record(42, [10], now_ms())
    assert 0 < await empty_redis.ttl("seen:{42}") <= 15 * 60


async def test_redis_that_is_away_is_unavailable() -> None:
    async with open_redis(f"redis://127.0.0.1:{free_port()}/0") as away:
        with pytest.raises(Unavailable):
            await RedisRecentSeen(away).record(1, [1], now_ms())
        with pytest.raises(Unavailable):
            await RedisRecentSeen(away).seen(1)
