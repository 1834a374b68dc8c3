"""The log worker: every event once in the log of feeds, whatever happens to whoever writes it."""

import asyncio
import signal
import sys
from asyncio.subprocess import Process
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from feed.v1.events_pb2 import EngagementEvent, ImpressionEvent, ServedFeedEvent
from prometheus_client import REGISTRY

from mesh.ids import now_ms
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.codec import encode, new_event_id
from stores.events.port import Event, OutgoingRecord, Record, Topic
from stores.log.port import Kind
from stores.log.schemas import DENSE
from tests.eventually import eventually
from tests.fixtures.kafka import delete_topics
from tests.fixtures.served import EPSILON, a_full_feed, served_record
from tests.fixtures.stack import Stack
from tests.workers.backstage import Backstage
from workers.consumer import Consumer
from workers.log import Log

ROOT = Path(__file__).parent.parent.parent
PLACES = 5


def impression(user_id: int, feed_id: str, dwell_ms: int | None = None) -> OutgoingRecord:
    message = ImpressionEvent(
        user_id=user_id,
        post_id=1001,
        author_id=101,
        seen_at_ms=now_ms(),
        position=None if dwell_ms is None else 0,
        feed_id=feed_id,
        dwell_ms=dwell_ms,
    )
    return encode(Event(Topic.IMPRESSIONS, user_id, message), new_event_id())


def engagement(user_id: int, action: EngagementEvent.Action.ValueType) -> OutgoingRecord:
    message = EngagementEvent(
        user_id=user_id, post_id=1001, author_id=101, action=action, occurred_at_ms=now_ms()
    )
    return encode(Event(Topic.ENGAGEMENTS, user_id, message), new_event_id())


async def logged(backstage: Backstage, within_s: float = 60) -> None:
    """Returns when the log worker is done with everything."""

    async def nothing_waits() -> bool:
        for topic in Log.topics:
            assert await backstage.stores.events().lag(Log.group, topic) == 0
        return True

    await eventually(nothing_waits, within_s)


def rows(backstage: Backstage, kind: Kind) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = backstage.stores.feed_log().read(kind).to_pylist()
    return found


async def test_a_feed_is_a_row_for_each_place(backstage: Backstage) -> None:
    record = a_full_feed(7, "a" * 32)
    await backstage.stores.events().publish([record])
    async with backstage.running("log"):
        await logged(backstage)
    found = rows(backstage, Kind.SERVED)
    assert [row["position"] for row in found] == list(range(150))
    assert sorted(row["post_id"] for row in found) == [1001 + n for n in range(150)]
    for row in found:
        post_id = row["post_id"]
        assert (row["event_id"], row["feed_id"], row["user_id"]) == ("a" * 32, "a" * 32, 7)
        assert row["author_id"] == 101 + (post_id - 1001) % 40
        assert (row["age_hours"], row["topic"], row["hour"]) == (post_id - 1000, post_id * 10, 23)
        assert (row["source"], row["model_version"], row["affinity"]) == (1, "heuristic/1", 0)
        is_best = row["pool"][0] == post_id
        assert post_id in row["pool"]
        chance = EPSILON / len(row["pool"]) + (1 - EPSILON) * is_best
        assert row["propensity"] == pytest.approx(chance)
    scores = {row["post_id"]: row["score"] for row in found}
    for place, row in enumerate(found):
        pool = [scores[post_id] for post_id in row["pool"]]
        assert pool == sorted(pool, reverse=True)
        # Each was still to be placed.
        assert {r["post_id"] for r in found[:place]}.isdisjoint(row["pool"])
    assert abs(found[0]["served_at"] - datetime.now(UTC)) < timedelta(hours=1)


async def test_impressions_and_likes_are_kept_as_they_were_told(backstage: Backstage) -> None:
    records = [
        impression(7, "a" * 32, 1234),
        impression(8, ""),
        engagement(7, EngagementEvent.ACTION_LIKED),
        engagement(7, EngagementEvent.ACTION_UNLIKED),
    ]
    await backstage.stores.events().publish(records)
    async with backstage.running("log"):
        await logged(backstage)
    shown, unknown = sorted(rows(backstage, Kind.IMPRESSIONS), key=lambda row: row["user_id"])
    assert (shown["feed_id"], shown["position"], shown["dwell_ms"]) == ("a" * 32, 0, 1234)
    assert (unknown["feed_id"], unknown["position"], unknown["dwell_ms"]) == ("", None, None)
    assert (shown["user_id"], shown["post_id"], shown["author_id"]) == (7, 1001, 101)
    assert [row["action"] for row in rows(backstage, Kind.ENGAGEMENTS)] == ["like", "unlike"]
    assert shown["event_id"] == records[0].headers["event_id"]


async def test_without_the_ranker_features_are_missing_and_the_rest_is_there(
    backstage: Backstage,
) -> None:
    record = served_record(7, "a" * 32, count=3, with_features=False)
    await backstage.stores.events().publish([record])
    async with backstage.running("log"):
        await logged(backstage)
    found = rows(backstage, Kind.SERVED)
    assert len(found) == 3
    assert {row[name] for row in found for name in (*DENSE, "topic", "hour")} == {None}


async def test_a_feed_that_contradicts_itself_holds_up_nobody(backstage: Backstage) -> None:
    short = ServedFeedEvent(feed_id="b" * 32, user_id=7, served_at_ms=now_ms(), post_ids=bytes(16))
    uneven = ServedFeedEvent(feed_id="c" * 32, user_id=7, served_at_ms=now_ms(), post_ids=bytes(7))
    outside = ServedFeedEvent(
        feed_id="d" * 32, user_id=7, served_at_ms=now_ms(), pool_sizes=b"\1\0", pool=b"\1\0"
    )
    await backstage.stores.events().publish(
        [
            *(encode(Event(Topic.SERVED, 7, bad), bad.feed_id) for bad in (short, uneven, outside)),
            served_record(7, "a" * 32, count=3),
        ]
    )
    async with backstage.running("log"):
        await logged(backstage)
    assert {row["feed_id"] for row in rows(backstage, Kind.SERVED)} == {"a" * 32}
    grave: Any = f"{Topic.SERVED}.dead"
    subscription = await backstage.stores.events().subscribe("gravediggers", [grave])
    buried: list[Record] = await subscription.read(100, 1)
    await subscription.close()
    assert len(buried) == 3
    assert all(each.headers["dead_reason"].startswith("INVALID") for each in buried)


async def test_what_was_gathered_for_a_while_is_one_file(
    backstage: Backstage, tmp_path: Path
) -> None:
    events = backstage.stores.events()
    worker = Log(backstage.stores.feed_log(), backstage.stores.leases(), 90)
    before = REGISTRY.get_sample_value("feed_log_rows_total", {"kind": "served"}) or 0
    consuming = asyncio.create_task(Consumer(worker, events, gather_s=3).run())
    for n in range(10):
        await events.publish([served_record(7, f"{n}", count=PLACES)])
        await asyncio.sleep(0.02)
    await logged(backstage)
    consuming.cancel()
    await asyncio.gather(consuming, return_exceptions=True)
    # The first may have been read alone, by a slow machine.
    assert len(list(tmp_path.glob("log/served/*/*.parquet"))) <= 2
    assert len(rows(backstage, Kind.SERVED)) == 10 * PLACES
    after = REGISTRY.get_sample_value("feed_log_rows_total", {"kind": "served"}) or 0
    assert after - before == 10 * PLACES


async def test_a_folder_that_is_away_holds_events_back_and_loses_none(
    backstage: Backstage, tmp_path: Path
) -> None:
    (tmp_path / "log").write_text("not a folder")
    await backstage.stores.events().publish([served_record(7, "a" * 32, count=PLACES)])
    async with backstage.running("log"):

        async def tried() -> bool:
            labels = {"topic": Topic.SERVED, "group": "log", "outcome": "retried"}
            return bool(REGISTRY.get_sample_value("events_handled_total", labels))

        await eventually(tried, within_s=30)
        (tmp_path / "log").unlink()
        await logged(backstage)
    assert len(rows(backstage, Kind.SERVED)) == PLACES


async def test_closed_days_are_tidied_and_old_ones_forgotten(
    backstage: Backstage, tmp_path: Path
) -> None:
    worker = Log(backstage.stores.feed_log(), backstage.stores.leases(), 2)
    for n in range(3):
        await backstage.stores.events().publish([served_record(7, f"{n}", count=PLACES)])
        async with backstage.running("log"):
            await logged(backstage)

    def files() -> list[Path]:
        return list(tmp_path.glob("log/served/*/*.parquet"))

    today = datetime.now(UTC)
    [day] = backstage.stores.feed_log().days(Kind.SERVED)
    await worker.tidy(today)
    assert len(files()) == 3
    await worker.tidy(today + timedelta(days=1, hours=2))
    assert len(files()) == 1
    assert len(rows(backstage, Kind.SERVED)) == 3 * PLACES
    await worker.tidy(datetime.combine(day, today.timetz()) + timedelta(days=2))
    assert len(files()) == 1
    await worker.tidy(datetime.combine(day, today.timetz()) + timedelta(days=3))
    assert files() == []


# -- kill -9 ----------------------------------------------------------------------------------


@pytest.fixture(params=["redis", pytest.param("kafka", marks=pytest.mark.stack)])
async def events_url(request: pytest.FixtureRequest, backstage: Backstage) -> AsyncIterator[str]:
    """Of every event log, by its name."""
    if request.param == "redis":
        yield backstage.settings.events_url
        return
    stack: Stack = request.getfixturevalue("stack")
    url = f"{await stack.url('kafka')}/{new_event_id()[:12]}"
    yield url
    await delete_topics(url)


@asynccontextmanager
async def worker_process(settings: Settings, events_url: str) -> AsyncIterator[Process]:
    """The log worker, which may be killed within the block."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "workers", "log", cwd=ROOT,
        env={
            "PATH": "/usr/bin:/bin",
            "FEED_DATA_DIR": str(settings.data_dir),
            "FEED_REDIS_URL": settings.redis_url,
            "FEED_EVENTS_URL": events_url,
            "FEED_LOG_GATHER_S": "0.1",
        },
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.timeout(300)
async def test_killed_in_mid_stream_it_loses_and_doubles_nothing(
    backstage: Backstage, events_url: str
) -> None:
    settings = backstage.settings.model_copy(update={"events_url": events_url})
    sent: list[str] = []
    stop = asyncio.Event()
    async with Connections(settings) as stores:
        events, log = stores.events(), stores.feed_log()

        async def keep_serving() -> None:
            while not stop.is_set():
                feed_id = uuid4().hex
                record = served_record(len(sent) % 50, feed_id, count=PLACES)
                # Announced twice now and then, as by an outbox after a lost answer.
                copies = [record] * (1 + (len(sent) % 7 == 0))
                await events.publish([*copies, impression(len(sent) % 50, feed_id, 100)])
                sent.append(feed_id)
                await asyncio.sleep(0.005)

        def read() -> set[str]:
            return set(log.read(Kind.SERVED, columns=["feed_id"])["feed_id"].to_pylist())

        async def more_than(known: int) -> bool:
            return len(await asyncio.to_thread(read)) > known

        serving = asyncio.create_task(keep_serving())
        for _ in range(4):
            known = len(read())
            async with worker_process(settings, events_url) as process:
                await eventually(partial(more_than, known), 60, every_s=0.05)
                process.send_signal(signal.SIGKILL)
        stop.set()
        await serving

        async with worker_process(settings, events_url):

            async def everything() -> bool:
                for topic in (Topic.SERVED, Topic.IMPRESSIONS):
                    assert await events.lag(Log.group, topic) == 0
                return True

            await eventually(everything, within_s=120, every_s=0.2)
        for _ in range(2):
            served = log.read(Kind.SERVED)
            keys = zip(served["feed_id"].to_pylist(), served["position"].to_pylist(), strict=True)
            assert Counter(keys) == Counter((f, n) for f in sent for n in range(PLACES))
            shown = log.read(Kind.IMPRESSIONS)["feed_id"].to_pylist()
            assert Counter(shown) == Counter(sent)
            # The same after all of it was joined.
            await log.compact((datetime.now(UTC) + timedelta(days=1)).date())
