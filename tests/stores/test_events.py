"""What every event log does: order, at least once, one group apart from another."""

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from redis.asyncio import Redis

from local.valkey import Valkey
from mesh.errors import Unavailable
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.codec import new_event_id
from stores.events.port import EventLog, OutgoingRecord, Record, Subscription, Topic
from stores.events.redis import RedisEventLog
from stores.redis_client import open_redis
from tests.eventually import eventually
from tests.fixtures.kafka import delete_topics, everything, headers_of
from tests.fixtures.spans import attribute
from tests.fixtures.stack import Stack
from tests.fixtures.valkey import ValkeyCluster, free_port

POSTS, GRAPH = Topic.POSTS, Topic.GRAPH
ROOT = Path(__file__).parent.parent.parent
# For something that is there, or will be.
WAIT_S = 30.0

# A member that reads until it has something, says what, and waits to be killed.
_MEMBER = """
import asyncio, sys
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.port import Topic

async def main():
    async with Connections(Settings(events_url=sys.argv[1])) as stores:
        subscription = await stores.events().subscribe(sys.argv[2], [Topic.POSTS])
        while not (records := await subscription.read(100, 10)):
            pass
        print(" ".join(record.value.decode() for record in records), flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@dataclass(frozen=True)
class Backend:
    """An event log that holds nothing.

    Args:
        log: It.
        url: Its FEED_EVENTS_URL.
        dead: What is in a topic's dead topic.
        counts_deliveries: Whether records say how often they were delivered.
        commits_beyond_gaps: Whether a record that is done stays so while one before it is not.
        waits_for_dead_s: How long a group waits for a member that was killed.
    """

    log: EventLog
    url: str
    dead: Callable[[Topic], Awaitable[list[OutgoingRecord]]]
    counts_deliveries: bool
    commits_beyond_gaps: bool
    waits_for_dead_s: float


@pytest.fixture
def redis(empty_redis: Redis, cluster_url: str) -> Backend:
    return streams(empty_redis, cluster_url)


@pytest.fixture
def cluster(empty_cluster: Redis, masters: ValkeyCluster) -> Backend:
    return streams(empty_cluster, masters.url)


def streams(client: Redis, url: str) -> Backend:
    async def dead(topic: Topic) -> list[OutgoingRecord]:
        return [
            OutgoingRecord(
                topic,
                fields[b"key"].decode(),
                fields[b"value"],
                json.loads(fields[b"headers"]),
            )
            for _, fields in await client.xrange(f"events:{{{topic}.dead}}")
        ]

    # Nothing is kept for its age, so that trimming shows.
    log = RedisEventLog(client, keep_s=0)
    return Backend(log, url, dead, True, True, waits_for_dead_s=5)


@pytest.fixture
async def kafka(stack: Stack) -> AsyncIterator[Backend]:
    url = f"{await stack.url('kafka')}/{new_event_id()[:12]}"

    async def dead(topic: Topic) -> list[OutgoingRecord]:
        return [
            OutgoingRecord(topic, each.key.decode(), each.value, headers_of(each))
            for each in await everything(url, f"{topic}.dead")
        ]

    async with Connections(Settings(events_url=url)) as stores:
        yield Backend(stores.events(), url, dead, False, False, waits_for_dead_s=60)
    await delete_topics(url)


@pytest.fixture(params=["redis", "cluster", pytest.param("kafka", marks=pytest.mark.stack)])
def backend(request: pytest.FixtureRequest) -> Backend:
    started: Backend = request.getfixturevalue(request.param)
    return started


@pytest.fixture
def log(backend: Backend) -> EventLog:
    return backend.log


def record(number: int, topic: str = POSTS, key: int = 1) -> OutgoingRecord:
    return OutgoingRecord(topic, str(key), str(number).encode(), {"event_id": f"e{number}"})


async def publish(log: EventLog, *numbers: int, topic: str = POSTS) -> None:
    await log.publish([record(number, topic) for number in numbers])


def numbers(records: Sequence[Record]) -> list[int]:
    return [int(record.value) for record in records]


@asynccontextmanager
async def joined(
    log: EventLog, group: str = "g", topics: Sequence[Topic] = (POSTS,)
) -> AsyncIterator[Subscription]:
    subscription = await log.subscribe(group, topics)
    try:
        yield subscription
    finally:
        await subscription.close()


async def read_all(subscription: Subscription, count: int, at_once: int = 100) -> list[Record]:
    """Reads until there are so many."""
    records: list[Record] = []
    async with asyncio.timeout(WAIT_S):
        while len(records) < count:
            records += await subscription.read(at_once, 1)
    return records


async def test_a_record_arrives_as_it_was_published(log: EventLog) -> None:
    value, headers = b'{"text":"\xc3\xa9\\n"}', {"event_id": "e1", "origin": "here"}
    await log.publish([OutgoingRecord(POSTS, "42", value, headers)])
    async with joined(log) as subscription:
        [arrived] = await subscription.read(10, WAIT_S)
    assert (arrived.topic, arrived.key, arrived.value) == (POSTS, "42", value)
    assert {name: arrived.headers[name] for name in headers} == headers
    assert arrived.event_id == "e1"
    assert arrived.redeliveries == 0


async def test_records_arrive_in_order_and_no_more_than_asked_for(log: EventLog) -> None:
    await publish(log, *range(25))
    async with joined(log) as subscription:
        assert numbers(await subscription.read(10, WAIT_S)) == list(range(10))
        await publish(log, 25)
        assert numbers(await read_all(subscription, 16, at_once=10)) == list(range(10, 26))


async def test_a_group_begins_at_the_oldest_record(log: EventLog) -> None:
    await publish(log, 1, 2)
    async with joined(log, "late") as subscription:
        assert numbers(await subscription.read(10, WAIT_S)) == [1, 2]


async def test_nothing_to_read_is_an_empty_answer_in_time(log: EventLog) -> None:
    async with joined(log) as subscription:
        assert await subscription.read(10, 0) == []
        started = time.monotonic()
        assert await subscription.read(10, 0.3) == []
        assert 0.25 < time.monotonic() - started < 1


async def test_a_waiting_reader_gets_a_new_record_at_once(log: EventLog) -> None:
    async with joined(log, topics=[GRAPH, POSTS]) as subscription:
        for number in range(3):
            waiting = asyncio.create_task(subscription.read(10, WAIT_S))
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
            published = time.monotonic()
            await publish(log, number)
            assert numbers(await waiting) == [number]
            assert time.monotonic() - published < WAIT_S / 3


async def test_all_topics_of_a_subscription_are_read(log: EventLog) -> None:
    await log.publish([record(number, [POSTS, GRAPH][number % 2]) for number in range(10)])
    async with joined(log, topics=[POSTS, GRAPH]) as subscription:
        records = await read_all(subscription, 10, at_once=4)
        await subscription.commit(records)
        assert await log.lag("g", POSTS) == await log.lag("g", GRAPH) == 0
    for topic, expected in ((POSTS, [0, 2, 4, 6, 8]), (GRAPH, [1, 3, 5, 7, 9])):
        assert numbers([each for each in records if each.topic == topic]) == expected


async def test_a_busy_topic_does_not_starve_another(log: EventLog) -> None:
    await publish(log, *range(50))
    await publish(log, 100, topic=GRAPH)
    async with joined(log, topics=[POSTS, GRAPH]) as subscription:
        first_three = [await subscription.read(5, WAIT_S) for _ in range(3)]
    assert 100 in [number for records in first_three for number in numbers(records)]


async def test_committed_records_do_not_come_again(backend: Backend) -> None:
    log = backend.log
    await publish(log, 1, 2, 3)
    async with joined(log) as subscription:
        records = await subscription.read(10, WAIT_S)
        await subscription.commit([records[0], records[2]])
        await subscription.commit(records[:1])
        await subscription.commit([])
    left = [2] if backend.commits_beyond_gaps else [2, 3]
    async with joined(log) as subscription:
        records = await read_all(subscription, len(left))
        assert numbers(records) == left
        await subscription.commit(records)
    async with joined(log) as subscription:
        assert await subscription.read(10, 0.5) == []


async def test_uncommitted_records_come_first_with_their_redeliveries(backend: Backend) -> None:
    log = backend.log
    await publish(log, 1, 2, 3)
    async with joined(log) as subscription:
        assert numbers(await subscription.read(2, WAIT_S)) == [1, 2]
    async with joined(log) as subscription:
        [again] = await subscription.read(1, WAIT_S)
        assert numbers([again]) == [1]
        assert again.redeliveries == (1 if backend.counts_deliveries else 0)
    await publish(log, 4)
    async with joined(log) as subscription:
        records = await read_all(subscription, 4)
    assert numbers(records) == [1, 2, 3, 4]
    expected = [2, 1, 0, 0] if backend.counts_deliveries else [0, 0, 0, 0]
    assert [each.redeliveries for each in records] == expected


async def test_many_uncommitted_records_are_read_in_pages_before_new_ones(log: EventLog) -> None:
    await publish(log, *range(30))
    async with joined(log) as subscription:
        await read_all(subscription, 30)
    await publish(log, 30)
    async with joined(log) as subscription:
        records = await read_all(subscription, 31, at_once=7)
    assert numbers(records) == list(range(31))


async def test_groups_do_not_affect_each_other(log: EventLog) -> None:
    await publish(log, 1, 2)
    async with joined(log, "first") as first, joined(log, "second") as second:
        records = await first.read(10, WAIT_S)
        await first.commit(records)
        assert numbers(records) == numbers(await read_all(second, 2)) == [1, 2]
        assert await log.lag("first", POSTS) == 0
        assert await log.lag("second", POSTS) == 2


async def test_redis_a_second_member_gets_nothing_until_the_first_leaves(
    empty_redis: Redis,
) -> None:
    log = RedisEventLog(empty_redis)
    await publish(log, 1, 2)
    first, second = await log.subscribe("g", [POSTS]), await log.subscribe("g", [POSTS])
    records = await first.read(1, WAIT_S)
    assert numbers(records) == [1]
    assert await second.read(10, 0.3) == []
    await first.commit(records)
    assert numbers(await first.read(1, WAIT_S)) == [2]
    waiting = asyncio.create_task(second.read(10, WAIT_S))
    await first.close()
    left = time.monotonic()
    [taken_over] = await waiting
    assert time.monotonic() - left < 1
    assert (numbers([taken_over]), taken_over.redeliveries) == ([2], 1)
    await second.close()


async def test_a_member_keeps_what_it_has_read_while_it_handles_for_long(log: EventLog) -> None:
    await publish(log, 1)
    async with joined(log) as first:
        records = await first.read(10, WAIT_S)
        async with joined(log) as second:
            # Longer than a dead member would be waited for.
            assert await second.read(10, 3.6) == []
            await first.commit(records)
            await publish(log, 2)
            arrived: list[Record] = []
            async with asyncio.timeout(WAIT_S):
                while not arrived:
                    arrived = [*await first.read(10, 0.3), *await second.read(10, 0.3)]
            assert numbers(arrived) == [2]


async def test_what_a_killed_member_left_comes_to_another(backend: Backend) -> None:
    # Of so many keys, each of two members has some where they share a topic.
    every = [record(number, key=number) for number in range(16)]
    await backend.log.publish(every)
    async with joined(backend.log) as survivor:
        killed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", _MEMBER, backend.url, "g"),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
        )
        assert killed.stdout is not None
        had = set(map(int, (await killed.stdout.readline()).split()))
        assert had
        killed.kill()
        await killed.wait()
        records: list[Record] = []
        async with asyncio.timeout(backend.waits_for_dead_s):
            while not had <= set(numbers(records)):
                read = await survivor.read(100, 1)
                await survivor.commit(read)
                records += read
    if backend.counts_deliveries:
        assert [each.redeliveries for each in records] == [1] * 16


async def test_a_cancelled_read_loses_nothing(log: EventLog) -> None:
    arrived: set[int] = set()
    async with joined(log) as subscription:
        for number in range(20):
            reading = asyncio.create_task(subscription.read(10, WAIT_S))
            await asyncio.wait([reading], timeout=0.002 * (number % 5))
            await publish(log, number)
            reading.cancel()
            with suppress(asyncio.CancelledError):
                arrived |= set(numbers(await reading))
        async with asyncio.timeout(WAIT_S):
            while len(arrived) < 20:
                arrived |= set(numbers(await subscription.read(100, 1)))


async def test_a_buried_record_is_in_the_dead_topic_with_the_reason(backend: Backend) -> None:
    await publish(backend.log, 1)
    async with joined(backend.log) as subscription:
        [bad] = await subscription.read(10, WAIT_S)
        await backend.log.bury(bad, "NOT_FOUND: no such post")
        await subscription.commit([bad])
    [dead] = await backend.dead(POSTS)
    assert (dead.key, dead.value) == ("1", b"1")
    assert dead.headers["dead_reason"] == "NOT_FOUND: no such post"
    assert dead.headers["event_id"] == "e1"


async def test_lag_counts_what_is_not_committed(log: EventLog) -> None:
    assert await log.lag("g", POSTS) == 0
    await publish(log, *range(10))
    assert await log.lag("g", POSTS) == 10
    async with joined(log) as subscription:
        assert await log.lag("g", POSTS) == 10
        records = await subscription.read(6, WAIT_S)
        assert await log.lag("g", POSTS) == 10
        await subscription.commit(records[:4])
        assert await log.lag("g", POSTS) == 6
        await publish(log, 10)
        assert await log.lag("g", POSTS) == 7
        await subscription.commit([*records[4:], *await read_all(subscription, 5)])
        assert await log.lag("g", POSTS) == 0


async def test_redis_trimming_takes_only_what_every_group_has_committed(
    empty_redis: Redis,
) -> None:
    log = RedisEventLog(empty_redis, keep_s=0)
    await publish(log, *range(100))
    async with joined(log, "slow") as slow, joined(log, "fast") as fast:
        first = await slow.read(40, WAIT_S)
        # 0 to 9 are done for both, and the rest is not; the others are done out of order.
        await slow.commit([*first[:10], *first[20:]])
        await fast.commit(await read_all(fast, 100))
        assert await empty_redis.xlen("events:{feed.posts.v1}") == 90
    assert await log.lag("slow", POSTS) == 70
    async with joined(log, "slow") as slow:
        left = await read_all(slow, 70)
        assert numbers(left) == [*range(10, 20), *range(40, 100)]
        await slow.commit(left)
        assert await log.lag("slow", POSTS) == 0
    assert await empty_redis.xlen("events:{feed.posts.v1}") == 1


async def test_redis_keeps_served_feeds_for_a_minute_only(empty_redis: Redis) -> None:
    log = RedisEventLog(empty_redis)
    topics = [POSTS, Topic.SERVED]
    two_minutes_ago = int(time.time() * 1000) - 120_000
    for topic in topics:
        for number in range(2):
            await empty_redis.xadd(
                f"events:{{{topic}}}",
                {"key": "1", "value": "{}", "headers": "{}"},
                id=f"{two_minutes_ago}-{number}",
            )
    subscription = await log.subscribe("readers", topics)
    await subscription.commit(await read_all(subscription, 4))
    await subscription.close()
    left = [await empty_redis.xlen(f"events:{{{topic}}}") for topic in topics]
    # The last one of a stream always stays.
    assert left == [2, 1]


async def test_redis_keeps_committed_records_for_a_group_that_starts_late(
    empty_redis: Redis,
) -> None:
    log = RedisEventLog(empty_redis)
    await publish(log, 1, 2)
    async with joined(log, "early") as early:
        await early.commit(await read_all(early, 2))
    async with joined(log, "late") as late:
        assert numbers(await late.read(10, WAIT_S)) == [1, 2]


async def test_redis_records_deleted_by_hand_are_passed_over(empty_redis: Redis) -> None:
    log = RedisEventLog(empty_redis, keep_s=0)
    await publish(log, 1, 2, 3)
    async with joined(log) as subscription:
        records = await subscription.read(10, WAIT_S)
    await empty_redis.xdel("events:{feed.posts.v1}", records[1].position)
    async with joined(log) as subscription:
        left = await subscription.read(10, WAIT_S)
        assert numbers(left) == [1, 3]
        await subscription.commit(left)
        assert await log.lag("g", POSTS) == 0


async def test_redis_that_goes_and_comes_back_is_unavailable_in_between(
    tmp_path: Path,
) -> None:
    valkey = Valkey(tmp_path, free_port())
    await valkey.start()
    async with open_redis(valkey.url) as client:
        log = RedisEventLog(client)
        subscription = await log.subscribe("g", [POSTS])
        await publish(log, 1)
        assert numbers(await subscription.read(10, WAIT_S)) == [1]
        waiting = asyncio.create_task(subscription.read(10, 30))
        await asyncio.wait([waiting], timeout=0.1)

        await valkey.stop()
        gone = time.monotonic()
        with pytest.raises(Unavailable):
            await waiting
        assert time.monotonic() - gone < 2
        with pytest.raises(Unavailable):
            await publish(log, 2)
        with pytest.raises(Unavailable):
            await log.lag("g", POSTS)
        with pytest.raises(Unavailable):
            await log.subscribe("h", [POSTS])

        await valkey.start()
        await publish(log, 2)
        # The failed read may have carried records, so what is uncommitted comes again.
        assert numbers(await read_all(subscription, 2)) == [1, 2]

        # Back without its data, and so without the group.
        await client.flushall()
        await publish(log, 3)
        assert numbers(await read_all(subscription, 1)) == [3]
        await valkey.stop()
        await subscription.close()


async def test_redis_a_reader_that_hangs_on_a_stopped_server_is_told_soon(tmp_path: Path) -> None:
    valkey = Valkey(tmp_path, free_port())
    await valkey.start()
    async with open_redis(valkey.url) as client, joined(RedisEventLog(client)) as subscription:
        await client.client_pause(4_000)
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await subscription.read(10, 30)
        assert time.monotonic() - started < 3
        await valkey.stop()


def traceparent(trace_id: int, span_id: int) -> dict[str, str]:
    return {"traceparent": f"00-{trace_id:032x}-{span_id:016x}-01", "baggage": "experiment=blue"}


async def test_what_one_span_announced_is_sent_in_one_span_below_it_and_carries_that(
    log: EventLog, spans: InMemorySpanExporter
) -> None:
    posts = [OutgoingRecord(POSTS, "1", b"1", traceparent(7, n)) for n in (1, 1, 2)]
    await log.publish([*posts, OutgoingRecord(GRAPH, "1", b"1", traceparent(7, 1))])

    # Redis commands are no spans here: one call is of many traces.
    sent = spans.get_finished_spans()
    assert {span.kind for span in sent} == {SpanKind.PRODUCER}
    told = {(s.name, s.parent.span_id): attribute(s, "messaging.batch.message_count")
            for s in sent if s.parent}  # fmt: skip
    assert told == {
        ("send feed.posts.v1", 1): 2,
        ("send feed.posts.v1", 2): None,
        ("send feed.graph.v1", 1): None,
    }
    for span in sent:
        assert attribute(span, "messaging.system") == log.system
        assert attribute(span, "server.address") == "127.0.0.1"
        assert attribute(span, "messaging.operation.type") == "send"
    ids = {s.parent.span_id: s.context.span_id for s in sent if s.parent and "posts" in s.name}

    async with joined(log) as subscription:
        records = await read_all(subscription, 3)
    carried = [record.headers["traceparent"].split("-")[1:3] for record in records]
    assert carried == [[f"{7:032x}", f"{ids[n]:016x}"] for n in (1, 1, 2)]
    assert {record.headers["baggage"] for record in records} == {"experiment=blue"}


async def test_a_failed_sending_is_an_error_on_each_of_its_spans(
    spans: InMemorySpanExporter,
) -> None:
    log = RedisEventLog(open_redis(f"redis://127.0.0.1:{free_port()}"))
    records = [OutgoingRecord(POSTS, "1", b"1", traceparent(n, n)) for n in (1, 2)]
    with pytest.raises(Unavailable):
        await log.publish(records)
    sent = spans.get_finished_spans()
    assert [s.status.status_code for s in sent] == [StatusCode.ERROR] * 2
    assert [attribute(s, "error.type") for s in sent] == ["UNAVAILABLE"] * 2


async def test_a_reader_keeps_up_with_concurrent_writers(log: EventLog) -> None:
    async def write(key: int) -> None:
        for number in range(50):
            each = replace(record(number, key=key), headers={"event_id": new_event_id()})
            await log.publish([each])

    arrived: list[Record] = []

    async def read() -> bool:
        records = await subscription.read(17, 0.5)
        await subscription.commit(records)
        arrived.extend(records)
        return len(arrived) == 200

    async with joined(log) as subscription:
        writers = asyncio.gather(*(write(key) for key in range(4)))
        reading: Callable[[], Awaitable[bool]] = read
        complete: bool = await eventually(reading, within_s=60)
        assert complete
        await writers
    for key in range(4):
        assert numbers([each for each in arrived if each.key == str(key)]) == list(range(50))
