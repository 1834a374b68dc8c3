"""What every adapter of the leases port does."""

import asyncio

import pytest

from stores.leases.port import Leases
from stores.leases.sql import SqlLeases
from stores.sql.database import Database
from tests.eventually import eventually
from tests.fixtures.sql import fresh_id


class Clock:
    """A clock that stands still until it is set."""

    def __init__(self) -> None:
        self.now_ms = 1_790_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(database: Database) -> Leases:
    return SqlLeases(database)


@pytest.fixture
def name() -> str:
    return f"lease:{fresh_id()}"


async def test_a_lease_has_one_holder_until_it_ends(
    leases: Leases, name: str, clock: Clock
) -> None:
    assert await leases.acquire(name, "one", 10, clock())
    assert not await leases.acquire(name, "two", 10, clock())
    clock.now_ms += 10_000
    assert not await leases.acquire(name, "two", 10, clock())
    clock.now_ms += 1
    assert await leases.acquire(name, "two", 10, clock())
    assert not await leases.acquire(name, "one", 10, clock())


async def test_without_a_clock_of_its_holder_a_lease_ends_by_the_stores(
    leases: Leases, name: str
) -> None:
    assert await leases.acquire(name, "one", 0.2)
    assert await eventually(lambda: leases.acquire(name, "two", 60))
    assert not await leases.acquire(name, "one", 60)
    assert await leases.acquire(name, "two", 60)


async def test_its_holder_renews_a_lease(leases: Leases, name: str, clock: Clock) -> None:
    for _ in range(3):
        assert await leases.acquire(name, "one", 10, clock())
        clock.now_ms += 9_000
        assert not await leases.acquire(name, "two", 10, clock())


async def test_a_released_lease_is_free(leases: Leases, name: str) -> None:
    await leases.acquire(name, "one", 10)
    await leases.release(name, "one")
    assert await leases.acquire(name, "two", 10)


async def test_only_its_holder_releases_a_lease(leases: Leases, name: str) -> None:
    await leases.acquire(name, "one", 10)
    await leases.release(name, "two")
    await leases.release("never leased", "two")
    assert not await leases.acquire(name, "two", 10)


async def test_of_concurrent_holders_one_gets_the_lease(
    leases: Leases, name: str, clock: Clock, sql_url: str
) -> None:
    elsewhere = Database(sql_url)
    stores = (leases, SqlLeases(elsewhere))
    for holders in (range(10), range(10, 20)):
        taken = await asyncio.gather(
            *(stores[n % 2].acquire(name, f"holder {n}", 10, clock()) for n in holders)
        )
        assert taken.count(True) == 1
        clock.now_ms += 10_001
    await elsewhere.close()
