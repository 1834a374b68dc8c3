"""What every adapter of the impressions port does."""

from dataclasses import replace

import pytest

from stores.events.codec import new_event_id
from stores.impressions.port import Impression, ImpressionStore, Seen
from stores.impressions.sql import SqlImpressionStore
from stores.sql.database import Database
from tests.fixtures.sql import fresh_id, fresh_ids

NOW = 1_790_000_000_000


@pytest.fixture
def impressions(database: Database) -> ImpressionStore:
    return SqlImpressionStore(database)


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


async def test_a_repeated_event_is_passed_over(impressions: ImpressionStore) -> None:
    reader, post = fresh_ids(2)
    impression = shown(reader, post, 0)
    await impressions.record([impression, impression])
    await impressions.record([replace(impression, seen_at_ms=NOW + 5), shown(reader, post, 7)])
    assert await impressions.seen(reader, 0, 10) == [Seen(post, 2, NOW)]


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


async def test_a_purge_forgets_what_is_older(impressions: ImpressionStore) -> None:
    reader, kept, forgotten = fresh_ids(3)
    long_ago = NOW // 2
    await impressions.record(
        [shown(reader, kept, long_ago)]
        + [shown(reader, forgotten, long_ago + 1 + n % 3) for n in range(6000)]
    )
    assert await impressions.purge(NOW - long_ago) == 6000
    assert await impressions.seen(reader, 0, 10) == [Seen(kept, 1, NOW - long_ago)]
    assert await impressions.purge(NOW - long_ago) == 0
