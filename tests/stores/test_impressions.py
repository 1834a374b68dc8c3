"""What every adapter of the impressions port does."""

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import make_url

from mesh.settings import Settings
from stores.connect import Connections
from stores.events.codec import new_event_id
from stores.impressions.port import Impression, ImpressionStore, Seen
from stores.impressions.sql import SqlImpressionStore
from stores.sql.database import Database
from stores.sql.migrate import migrate
from tests.fixtures.pinot import Patient, Pinot
from tests.fixtures.sql import drop_tidb, fresh_id, fresh_ids, new_tidb, rendered
from tests.fixtures.stack import Stack

NOW = 1_790_000_000_000


@pytest.fixture(scope="session")
async def sqlite_store(sqlite: str) -> AsyncIterator[ImpressionStore]:
    database = Database(sqlite)
    yield SqlImpressionStore(database)
    await database.close()


@pytest.fixture(scope="session")
async def tidb_store(stack: Stack) -> AsyncIterator[ImpressionStore]:
    url = await new_tidb(make_url(await stack.url("tidb")))
    await migrate(rendered(url))
    database = Database(rendered(url))
    yield SqlImpressionStore(database)
    await database.close()
    await drop_tidb(url)


@pytest.fixture(scope="session")
async def pinot_store(pinot: Pinot) -> AsyncIterator[ImpressionStore]:
    settings = Settings(events_url=pinot.events_url, impressions_url=pinot.impressions_url)
    async with Connections(settings) as stores:
        store: Any = Patient(stores.impressions())
        yield store


TIDB = pytest.param("tidb", marks=pytest.mark.stack)
PINOT = pytest.param("pinot", marks=pytest.mark.stack)


@pytest.fixture(params=["sqlite", TIDB, PINOT])
def impressions(request: pytest.FixtureRequest) -> ImpressionStore:
    store: ImpressionStore = request.getfixturevalue(f"{request.param}_store")
    return store


@pytest.fixture(params=["sqlite", TIDB])
def sql(request: pytest.FixtureRequest) -> ImpressionStore:
    store: ImpressionStore = request.getfixturevalue(f"{request.param}_store")
    return store


def shown(user_id: int, post_id: int, age_ms: int, dwell_ms: int | None = None) -> Impression:
    return Impression(
        event_id=new_event_id(),
        user_id=user_id,
        post_id=post_id,
        author_id=fresh_id(),
        seen_at_ms=NOW - age_ms,
        position=0,
        feed_id="f",
        dwell_ms=dwell_ms,
    )


async def test_what_was_seen_is_counted_by_post_latest_first(
    impressions: ImpressionStore,
) -> None:
    reader, (a, b, c) = fresh_id(), fresh_ids(3)
    await impressions.record(
        [
            shown(reader, a, 300),
            shown(reader, b, 200),
            shown(reader, a, 100),
            shown(reader, c, 1001),
            shown(fresh_id(), c, 0),
        ]
    )
    assert await impressions.seen(reader, NOW - 1000, 10) == [
        Seen(a, 2, NOW - 100),
        Seen(b, 1, NOW - 200),
    ]
    assert await impressions.seen(reader, NOW - 1001, 1) == [Seen(a, 2, NOW - 100)]
    assert await impressions.seen(fresh_id(), 0, 10) == []


async def test_a_repeated_event_is_counted_once(impressions: ImpressionStore) -> None:
    reader, post = fresh_ids(2)
    impression = shown(reader, post, 0, dwell_ms=9000)
    await impressions.record([impression, impression])
    await impressions.record([impression, shown(reader, post, 7)])
    assert await impressions.seen(reader, 0, 10) == [Seen(post, 2, NOW)]
    assert await impressions.dwelt(reader, 1, 0, 10) == [impression]
    after = (NOW, impression.event_id[:-1])
    assert (await impressions.page(after, 10_000)).count(impression) == 1


async def test_sql_the_first_of_a_repeated_event_stays(sql: ImpressionStore) -> None:
    reader, post = fresh_ids(2)
    impression = shown(reader, post, 0)
    await sql.record([impression])
    await sql.record([replace(impression, seen_at_ms=NOW + 5)])
    assert await sql.seen(reader, 0, 10) == [Seen(post, 1, NOW)]


async def test_every_field_is_kept(impressions: ImpressionStore) -> None:
    reader = fresh_id()
    # What an imported event may be called.
    odd = ["it's; --", "*", "100%(a)s", "\\'", "\u00e9\u4e16\U0001f642", 'null"{}']
    all_of_them = [
        Impression(event_id, reader, fresh_id(), fresh_id(), NOW + n, n, f"feed {n}", n + 1)
        for n, event_id in enumerate(odd)
    ]
    await impressions.record(all_of_them)
    assert await impressions.dwelt(reader, 0, 0, 10) == all_of_them[::-1]
    for each in all_of_them:
        found = await impressions.page((each.seen_at_ms - 1, "\U0010ffff"), 10_000)
        assert each in found
        found = await impressions.page((each.seen_at_ms, each.event_id), 10_000)
        assert each not in found
    bare = Impression("bare", reader, fresh_id(), fresh_id(), NOW + 100)
    await impressions.record([bare])
    assert bare in await impressions.page((NOW + 99, ""), 10_000)


async def test_dwelt_finds_long_looks_latest_first(impressions: ImpressionStore) -> None:
    reader = fresh_id()
    long, longer, short, unknown, old = (
        shown(reader, fresh_id(), age_ms, dwell_ms)
        for age_ms, dwell_ms in ((5, 3000), (2, 9000), (1, 2999), (0, None), (5000, 9000))
    )
    await impressions.record([long, longer, short, unknown, old])
    assert await impressions.dwelt(reader, 3000, NOW - 1000, 10) == [longer, long]
    assert await impressions.dwelt(reader, 3000, NOW - 1000, 1) == [longer]


async def test_many_are_recorded_at_once(impressions: ImpressionStore) -> None:
    reader = fresh_id()
    await impressions.record([shown(reader, post, 0) for post in fresh_ids(2500)])
    assert len(await impressions.seen(reader, 0, 10_000)) == 2500
    await impressions.record([])


async def test_pages_go_through_all_impressions_in_the_order_of_time(
    impressions: ImpressionStore,
) -> None:
    reader, later = fresh_id(), -fresh_id() % 10**6 - 10**9
    all_of_them = [shown(reader, fresh_id(), later - n // 2) for n in range(5)]
    all_of_them.sort(key=lambda one: (one.seen_at_ms, one.event_id))
    await impressions.record(all_of_them[::-1])
    after = (all_of_them[0].seen_at_ms - 1, "")
    first = await impressions.page(after, 3)
    assert first == all_of_them[:3]
    assert await impressions.page((first[-1].seen_at_ms, first[-1].event_id), 2) == all_of_them[3:]


async def test_sql_a_purge_forgets_what_is_older(sql: ImpressionStore) -> None:
    reader, kept, forgotten = fresh_ids(3)
    long_ago = NOW // 2
    await sql.record(
        [shown(reader, kept, long_ago)]
        + [shown(reader, forgotten, long_ago + 1 + n % 3) for n in range(6000)]
    )
    assert await sql.purge(NOW - long_ago) == 6000
    assert await sql.seen(reader, 0, 10) == [Seen(kept, 1, NOW - long_ago)]
    assert await sql.purge(NOW - long_ago) == 0
