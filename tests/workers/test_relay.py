"""What is in the outbox reaches the event log, in order, through one relay at a time."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from mesh.errors import Unavailable
from stores.events.port import OutgoingRecord, Record, Topic
from tests.eventually import eventually
from tests.fixtures.sql import fresh_ids
from tests.workers.backstage import Backstage
from workers import consumer
from workers.relay import LEASE, Relay


class Log:
    """An event log that fails `failures` times, and otherwise takes what `gate` lets through."""

    def __init__(self, target: Any, failures: int = 0, gate: asyncio.Event | None = None) -> None:
        self._target = target
        self.failures = failures
        self._gate = gate
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    async def publish(self, records: Sequence[OutgoingRecord]) -> None:
        self.calls += 1
        if self.failures:
            self.failures -= 1
            raise Unavailable("the event log is away")
        if self._gate is not None:
            await self._gate.wait()
        await self._target.publish(records)


class Forgetful:
    """An outbox whose first removal of published rows fails, as if the relay were killed there."""

    def __init__(self, target: Any) -> None:
        self._target = target
        self._failed = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._target, name)

    async def published(self, row_ids: Sequence[int]) -> None:
        if not self._failed:
            self._failed = True
            raise Unavailable("killed")
        await self._target.published(row_ids)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "_BACKOFF_S", (0.01,))


@asynccontextmanager
async def relaying(
    backstage: Backstage, log: Any = None, outbox: Any = None, lease_s: float = 5.0
) -> AsyncIterator[Relay]:
    stores = backstage.stores
    relay = Relay(outbox or stores.outbox(), log or stores.events(), stores.leases(), lease_s)
    task = asyncio.create_task(relay.run())
    try:
        yield relay
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def published(backstage: Backstage) -> list[Record]:
    """Every record of the posts' topic so far."""
    subscription = await backstage.stores.events().subscribe("onlookers", [Topic.POSTS])
    try:
        records: list[Record] = []
        while more := await subscription.read(1_000, 0.05):
            records += more
        return records
    finally:
        await subscription.close()


async def outbox_is_empty(backstage: Backstage) -> None:
    async def empty() -> bool:
        return not await backstage.stores.outbox().pending(1)

    await eventually(empty)


def post_ids(records: Sequence[Record]) -> list[str]:
    return [record.value.decode().split('"post_id":"')[1].split('"')[0] for record in records]


async def test_events_are_published_in_order_and_the_outbox_emptied(
    backstage: Backstage,
) -> None:
    expected = [str(await backstage.post(author, "hi")) for author in fresh_ids(30)]
    async with relaying(backstage):
        expected += [str(await backstage.post(author, "hi")) for author in fresh_ids(3)]
        await outbox_is_empty(backstage)
    assert post_ids(await published(backstage)) == expected


async def test_while_the_event_log_is_away_events_wait(backstage: Backstage) -> None:
    [author] = fresh_ids(1)
    log = Log(backstage.stores.events(), failures=5)
    expected = [str(await backstage.post(author, "hi")) for _ in range(3)]
    async with relaying(backstage, log):
        await outbox_is_empty(backstage)
    assert post_ids(await published(backstage)) == expected
    assert log.calls == 6


async def test_a_relay_killed_before_it_removed_the_rows_repeats_events_with_their_ids(
    backstage: Backstage,
) -> None:
    [author] = fresh_ids(1)
    await backstage.post(author, "hi")
    async with relaying(backstage, outbox=Forgetful(backstage.stores.outbox())):
        await outbox_is_empty(backstage)
    first, second = await published(backstage)
    assert first.value == second.value
    assert first.event_id == second.event_id


async def test_one_relay_works_and_another_takes_over_when_it_stops(
    backstage: Backstage,
) -> None:
    [author] = fresh_ids(1)
    first, second = Log(backstage.stores.events()), Log(backstage.stores.events())
    async with relaying(backstage, first, lease_s=0.6):
        await backstage.post(author, "hi")
        await outbox_is_empty(backstage)
        async with relaying(backstage, second, lease_s=0.6):
            for _ in range(20):
                await backstage.post(author, "hi")
                await outbox_is_empty(backstage)
            assert second.calls == 0
    async with relaying(backstage, second, lease_s=0.6):
        await backstage.post(author, "hi")
        await outbox_is_empty(backstage)
        assert second.calls == 1


async def test_a_relay_that_lost_its_lease_publishes_nothing_more(backstage: Backstage) -> None:
    [author] = fresh_ids(1)
    log = Log(backstage.stores.events())
    leases = backstage.stores.leases()
    async with relaying(backstage, log, lease_s=0.3) as relay:
        await backstage.post(author, "hi")
        await outbox_is_empty(backstage)

        async def taken_by_another() -> bool:
            # The relay itself may be the first to take what was released.
            await leases.release(LEASE, relay._loop._holder)
            return await leases.acquire(LEASE, "another", 30)

        await eventually(taken_by_another)

        async def noticed() -> bool:
            return not await relay._loop._holds_lease()

        await eventually(noticed)
        await backstage.post(author, "hi")
        calls = log.calls
        for _ in range(3):
            assert not await relay._loop._holds_lease()
        assert log.calls == calls
    assert len(await backstage.stores.outbox().pending(10)) == 1


async def test_a_publish_that_outlasts_the_lease_is_given_up(backstage: Backstage) -> None:
    [author] = fresh_ids(1)
    gate = asyncio.Event()
    log = Log(backstage.stores.events(), gate=gate)
    await backstage.post(author, "hi")
    async with relaying(backstage, log, lease_s=0.3):
        await eventually(lambda: log.calls >= 3)
        gate.set()
        await outbox_is_empty(backstage)
    assert len(await published(backstage)) == 1
