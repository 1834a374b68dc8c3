"""What the event log on Kafka does beyond the conformance suite: sharing, rebalances, outages."""

import asyncio
import os
import signal
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from aiokafka.partitioner import DefaultPartitioner
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mesh.errors import Unavailable
from mesh.settings import Settings
from stack.daemon import Daemon
from stores.connect import Connections
from stores.events.codec import new_event_id
from stores.events.kafka import KafkaEventLog
from stores.events.kafka_client import SHAPES, KafkaAddress
from stores.events.port import EventLog, OutgoingRecord, Record, Topic
from tests.eventually import eventually
from tests.fixtures.kafka import delete_topics, everything, headers_of
from tests.fixtures.spans import attribute
from tests.fixtures.stack import Stack
from tests.fixtures.valkey import free_port

pytestmark = pytest.mark.timeout(300)

POSTS = Topic.POSTS
ROOT = Path(__file__).parent.parent.parent

# A member that appends what it reads to a file, and commits that; SIGTERM makes it leave.
_MEMBER = """
import asyncio, signal, sys
from mesh.settings import Settings
from stores.connect import Connections
from stores.events.port import Topic

async def main():
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with Connections(Settings(events_url=sys.argv[1])) as stores:
        subscription = await stores.events().subscribe("g", [Topic.POSTS])
        with open(sys.argv[2], "a") as effects:
            while not stopped.is_set():
                records = await subscription.read(20, 1)
                async with subscription.holding():
                    for record in records:
                        await asyncio.sleep(0.001)
                        effects.write(f"{record.key} {record.value.decode()}\\n")
                        effects.flush()
                    await subscription.commit(records)
        await subscription.close()

asyncio.run(main())
"""


@pytest.fixture
async def url(stack: Stack) -> AsyncIterator[str]:
    url = f"{await stack.url('kafka')}/{new_event_id()[:12]}"
    yield url
    await delete_topics(url)


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[EventLog]:
    async with Connections(Settings(events_url=url)) as stores:
        yield stores.events()


def record(number: int, key: int = 1) -> OutgoingRecord:
    headers = {"event_id": new_event_id()}
    return OutgoingRecord(POSTS, str(key), str(number).encode(), headers)


async def publish_surely(log: EventLog, records: Sequence[OutgoingRecord]) -> int:
    """As the relay does: again, until the log has acknowledged. Returns the failed attempts."""
    failed = 0
    while True:
        try:
            await log.publish(records)
            return failed
        except Unavailable:
            failed += 1


# Kafka's own test vectors for its murmur2, whose sign bit is dropped.
@pytest.mark.parametrize(
    ("key", "hashed"),
    [
        ("21", -973932308),
        ("foobar", -790332482),
        ("a-little-bit-long-string", -985981536),
        ("abc", 479470107),
    ],
)
def test_keys_go_to_the_partitions_to_which_java_clients_send_them(key: str, hashed: int) -> None:
    partition = DefaultPartitioner()(key.encode(), list(range(8)), list(range(8)))
    assert partition == (hashed & 0x7FFFFFFF) % 8


@pytest.mark.parametrize("url", ["kafka://", "kafka://h:1/a/b", "kafka://h:1?x=1"])
def test_an_address_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="kafka://host:port"):
        KafkaAddress.parse(url)


def test_an_address_names_brokers_and_a_prefix() -> None:
    address = KafkaAddress.parse("kafka://a:1,b:2/blue")
    assert address == KafkaAddress(("a:1", "b:2"), "blue")
    assert address.named(POSTS) == "blue.feed.posts.v1"
    assert KafkaAddress.parse("kafka://a:1").named(POSTS) == "feed.posts.v1"


@pytest.mark.stack
async def test_topics_are_made_with_the_stated_partitions_and_one_key_stays_in_one(
    url: str,
) -> None:
    async with opened(url) as log:
        await log.publish([record(n, key) for n in range(5) for key in range(40)])
    by_key = defaultdict(list)
    records = await everything(url, POSTS)
    for each in records:
        by_key[each.key].append(each)
    assert {each.partition for each in records} == set(range(SHAPES[POSTS].partitions))
    for key, of_key in by_key.items():
        assert len({each.partition for each in of_key}) == 1, key
        assert [int(each.value) for each in of_key] == list(range(5))


@pytest.mark.stack
async def test_spans_and_records_say_where_in_kafka_a_record_is(
    url: str, spans: InMemorySpanExporter
) -> None:
    async with opened(url) as log:
        await log.publish([record(0)])
        await log.publish([record(1)])
        subscription = await log.subscribe("g", [POSTS])
        records: list[Record] = []
        while len(records) < 2:
            records += await subscription.read(10, 30)
        await subscription.close()
    sent = [span for span in spans.get_finished_spans() if span.name == "send feed.posts.v1"]
    assert [attribute(span, "messaging.kafka.offset") for span in sent] == [0, 1]
    assert [each.attributes["messaging.kafka.offset"] for each in records] == [0, 1]
    [partition] = {each.attributes["messaging.destination.partition.id"] for each in records}
    assert {attribute(s, "messaging.destination.partition.id") for s in sent} == {partition}
    for span in sent:
        assert attribute(span, "messaging.system") == "kafka"
        assert attribute(span, "server.port") == KafkaAddress.parse(url).server["server.port"]


@pytest.mark.stack
async def test_members_of_a_group_share_a_topic(url: str) -> None:
    async with opened(url) as log:
        first, second = [await log.subscribe("g", [POSTS]) for _ in range(2)]
        try:
            number = 0
            shares: list[set[str]] = [set(), set()]

            async def both_have_some() -> bool:
                nonlocal number
                await log.publish([record(number, key) for key in range(16)])
                number += 1
                for share, member in zip(shares, (first, second), strict=True):
                    records = await member.read(100, 0.2)
                    await member.commit(records)
                    share.clear()
                    share |= {each.key for each in records}
                return bool(shares[0] and shares[1])

            await eventually(both_have_some, within_s=60)
            assert not shares[0] & shares[1]
        finally:
            await first.close()
            await second.close()


@pytest.mark.stack
async def test_what_a_member_does_not_finish_is_cancelled_before_another_gets_it(url: str) -> None:
    address = KafkaAddress.parse(url)
    log = KafkaEventLog(address, drain_s=1)
    happened: list[str] = []
    try:
        await log.publish([record(n, key) for n, key in enumerate(range(16))])
        first = await log.subscribe("g", [POSTS])
        read: list[Record] = []
        while len(read) < 16:
            read += await first.read(100, 30)

        async def handle_for_ever() -> None:
            async with first.holding():
                try:
                    await asyncio.Event().wait()
                finally:
                    happened.append("cancelled")

        handling = asyncio.create_task(handle_for_ever())
        second = await log.subscribe("g", [POSTS])
        while not (records := await second.read(100, 30)):
            pass
        happened.append("taken over")
        await handling
        # Too late, and of somebody else's records.
        await first.commit(read)
        assert happened == ["cancelled", "taken over"]
        again = {each.value for each in records}
        while len(again) < 16:
            again |= {each.value for each in await first.read(100, 1)}
            again |= {each.value for each in await second.read(100, 1)}
        await first.close()
        await second.close()
    finally:
        await log.close()


async def start_member(url: str, effects: Path) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _MEMBER, url, str(effects)), cwd=ROOT
    )


def effects_of(files: Sequence[Path]) -> list[tuple[str, int]]:
    lines = [line for file in files if file.exists() for line in file.read_text().splitlines()]
    return [(key, int(number)) for key, number in map(str.split, lines)]


@pytest.mark.stack
async def test_members_that_join_leave_and_die_miss_nothing(url: str, tmp_path: Path) -> None:
    keys, least_rounds, ahead = 40, 50, 400
    files = [tmp_path / f"effects{n}" for n in range(3)]
    members = [await start_member(url, files[0])]
    changes_done = asyncio.Event()
    try:
        async with opened(url) as log:

            def have(count: int) -> bool:
                return len(set(effects_of(files))) >= count

            async def publish() -> set[tuple[str, int]]:
                published: set[tuple[str, int]] = set()
                number = 0
                while number < least_rounds or not changes_done.is_set():
                    await log.publish([record(number, key) for key in range(keys)])
                    published |= {(str(key), number) for key in range(keys)}
                    number += 1
                    # Never so far ahead that nothing would flow during a change.
                    least = len(published) - ahead
                    await eventually(partial(have, least), within_s=60)
                return published

            publishing = asyncio.create_task(publish())
            # One joins, one leaves in good order, one is killed; each while events flow.
            await eventually(lambda: len(effects_of(files)) > 100, within_s=60)
            members.append(await start_member(url, files[1]))
            await eventually(lambda: len(effects_of(files[1:2])) > 50, within_s=60)
            members.append(await start_member(url, files[2]))
            await eventually(lambda: effects_of(files[2:]), within_s=60)
            members[0].terminate()
            assert await members[0].wait() == 0
            members[1].kill()
            await members[1].wait()
            changes_done.set()
            published = await publishing
            assert len(published) >= keys * least_rounds
            await eventually(lambda: set(effects_of(files)) == published, 90, every_s=0.2)

            async def no_lag() -> bool:
                return await log.lag("g", POSTS) == 0

            await eventually(no_lag, within_s=30, every_s=0.2)
    finally:
        for member in members:
            with suppress(ProcessLookupError):
                member.kill()
    for file in files:
        of_key: dict[str, list[int]] = defaultdict(list)
        for key, number in effects_of([file]):
            of_key[key].append(number)
        for key, numbers in of_key.items():
            assert numbers == sorted(numbers), f"{file.name}: order of {key}"
    repeated = Counter(effects_of(files)) - Counter(set(effects_of(files)))
    # Only what the killed one had read and not committed.
    assert repeated.total() <= 20
    killed = set(effects_of(files[1:2]))
    assert set(repeated) <= killed


@pytest.mark.stack
async def test_a_broker_killed_while_records_are_sent_loses_none_and_doubles_none(
    own_kafka: Daemon,
) -> None:
    keys, per_key = 20, 100
    url = own_kafka.server.url
    async with opened(url) as log:
        failed = 0
        sent = asyncio.Event()

        async def send(key: int) -> None:
            nonlocal failed
            for number in range(0, per_key, 5):
                some = [record(number + n, key) for n in range(5)]
                failed += await publish_surely(log, some)
                if number == 20:
                    sent.set()

        sending = asyncio.gather(*map(send, range(keys)))
        await sent.wait()
        await own_kafka.kill()
        with pytest.raises(Unavailable):
            await log.lag("g", POSTS)
        await own_kafka.start()
        async with asyncio.timeout(60):
            await sending
        assert failed > 0
    records = await everything(url, POSTS)
    by_key: dict[bytes, list[int]] = defaultdict(list)
    for each in records:
        by_key[each.key].append(int(each.value))
    assert by_key == {str(key).encode(): list(range(per_key)) for key in range(keys)}
    assert len({headers_of(each)["event_id"] for each in records}) == keys * per_key


@pytest.mark.stack
async def test_a_broker_that_goes_and_comes_back_is_unavailable_in_between(
    own_kafka: Daemon,
) -> None:
    async with opened(own_kafka.server.url) as log:
        await log.publish([record(1)])
        subscription = await log.subscribe("g", [POSTS])
        while not (records := await subscription.read(10, 30)):
            pass
        await subscription.commit(records)
        await own_kafka.kill()

        second = record(2)
        with pytest.raises(Unavailable):
            await log.publish([second])
        with pytest.raises(Unavailable):
            await log.lag("g", POSTS)
        with pytest.raises(Unavailable):
            await log.subscribe("h", [POSTS])

        async def notices() -> bool:
            try:
                await subscription.read(10, 0.2)
            except Unavailable:
                return True
            return False

        await eventually(notices, within_s=60)
        await own_kafka.start()

        async def is_back() -> bool:
            with suppress(Unavailable):
                await log.publish([second])
                return True
            return False

        await eventually(is_back, within_s=60)

        async def arrives() -> list[Record]:
            with suppress(Unavailable):
                return await subscription.read(10, 1)
            return []

        # The same subscription, with what it had committed; and the record is there once.
        [arrived] = await eventually(arrives, within_s=60)
        assert arrived.value == b"2"
        assert await subscription.read(10, 1) == []
        await subscription.commit([arrived])
        assert await log.lag("g", POSTS) == 0
        await subscription.close()


@pytest.mark.stack
async def test_a_broker_that_hangs_is_unavailable_and_closing_does_not_wait_for_it(
    own_kafka: Daemon,
) -> None:
    async with opened(own_kafka.server.url) as log:
        await log.publish([record(1)])
        subscription = await log.subscribe("g", [POSTS])
        while not await subscription.read(10, 30):
            pass
        process = own_kafka.process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(Unavailable):
                await log.publish([record(2)])
            with pytest.raises(Unavailable):
                await log.lag("g", POSTS)
            closing = time.monotonic()
            await subscription.close()
            await log.close()
            # Less than one request may take.
            assert time.monotonic() - closing < 20
        finally:
            os.kill(process.pid, signal.SIGCONT)
    left = {task.get_name() for task in asyncio.all_tasks() if "aiokafka" in repr(task.get_coro())}
    assert not left


async def test_an_absent_broker_is_unavailable() -> None:
    async with opened(f"kafka://127.0.0.1:{free_port()}") as log:
        with pytest.raises(Unavailable):
            await log.publish([record(1)])
        with pytest.raises(Unavailable):
            await log.subscribe("g", [POSTS])
        with pytest.raises(Unavailable):
            await log.lag("g", POSTS)
