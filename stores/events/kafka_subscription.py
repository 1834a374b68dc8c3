"""A member of a group on Kafka: what it has read, how far that is committed, and rebalances.

Kafka keeps one number a group and partition: all records below it are done. So what is committed
is always the unbroken run of done records behind the last number; what is done beyond a gap comes
again after a restart, as the port allows.

In a rebalance all partitions are given up and dealt anew. Before this member lets go, it waits
until what it has read is committed; what is still not so after a while is dropped, and the block
that handles it is cancelled, before anybody else can have it.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from mesh.errors import Unavailable
from stores.events.kafka_client import ASK_S, KafkaAddress, locate, within
from stores.events.port import Record, Topic

_log = logging.getLogger(__name__)

# How long the group waits for a member that was killed, and how often members say that they live;
# so often they hear of a rebalance, too.
SESSION_MS = 10_000
_HEARTBEAT_MS = 1_000
# How long a rebalance waits for what members have read to be committed. The group waits a little
# longer for all its members.
DRAIN_S = 10.0
_CANCELLED_WITHIN_S = 5.0
_REBALANCE_MS = 30_000
# Longer than a rebalance, for which one request waits.
_REQUEST_MS = 40_000
# Brokers answer a fetch within half a second, also with nothing.
_FETCH_MS = 500
# Shorter outages need no new subscription, which would wait until the session of the old one ends.
_SILENT_S = 20.0
_JOINED_WITHIN_S = 60.0
_CLOSED_WITHIN_S = 3.0
_NEVER_MS = 2**31 - 1


@dataclass(slots=True)
class _Reading:
    """Offsets of one partition that were read and are not committed, lowest first."""

    offsets: deque[int] = field(default_factory=deque)
    done: set[int] = field(default_factory=set)

    def next_offset(self) -> int | None:
        """What may be committed: the offset after the unbroken run of done ones, if any."""
        end = None
        for offset in self.offsets:
            if offset not in self.done:
                break
            end = offset + 1
        return end

    def forget_below(self, end: int) -> None:
        while self.offsets and self.offsets[0] < end:
            self.done.discard(self.offsets.popleft())


class KafkaSubscription(ConsumerRebalanceListener):  # type: ignore[misc]
    """`stores.events.port.Subscription` on Kafka.

    Args:
        address: Which brokers, and the prefix of topics and groups.
        group: Without the prefix.
        topics: They exist.
        drain_s: How long a rebalance waits for what was read to be committed.
    """

    def __init__(
        self, address: KafkaAddress, group: str, topics: Sequence[Topic], drain_s: float
    ) -> None:
        self._address = address
        self._group = group
        self._topics = {address.named(topic): topic for topic in topics}
        self._drain_s = drain_s
        self._consumer: AIOKafkaConsumer | None = None
        self._readings: dict[TopicPartition, _Reading] = {}
        # Who was read last comes last, so that a busy partition does not starve the others.
        self._order: list[TopicPartition] = []
        self._assigned = asyncio.Event()
        self._changed_at = time.time()
        self._idle = asyncio.Event()
        self._idle.set()
        self._holding: asyncio.Timeout | None = None
        self._let_go = asyncio.Event()

    async def join(self) -> AIOKafkaConsumer:
        """Begins to join the group; the first `read` waits for that."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=list(self._address.servers),
            group_id=self._address.named(self._group),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            session_timeout_ms=SESSION_MS,
            heartbeat_interval_ms=_HEARTBEAT_MS,
            rebalance_timeout_ms=_REBALANCE_MS,
            # A member may handle for as long as a backend is away.
            max_poll_interval_ms=_NEVER_MS,
            request_timeout_ms=_REQUEST_MS,
            metadata_max_age_ms=30_000,
            fetch_max_wait_ms=_FETCH_MS,
            max_partition_fetch_bytes=256 * 1024,
        )
        self._changed_at = time.time()
        try:
            async with within(ASK_S):
                await consumer.start()
        except BaseException:
            await _close(consumer)
            raise
        self._consumer = consumer
        consumer.subscribe(list(self._topics), listener=self)
        return consumer

    async def read(self, max_records: int, wait_s: float) -> list[Record]:
        """As the port says; also empty while the group deals out partitions."""
        consumer = self._consumer or await self.join()
        now = asyncio.get_running_loop().time
        until = now() + wait_s
        taken: list[ConsumerRecord] = []
        try:
            # Of its own accord it waits for as long as a rebalance takes.
            async with asyncio.timeout_at(max(until, now() + 0.01)):
                await self._assigned.wait()
                taken = await self._take(consumer, max_records)
                if not taken and until > now():
                    taken = await self._take(consumer, max_records, until - now())
        except TimeoutError:
            pass
        except KafkaError as error:
            # It may be beyond help. What was read comes again to the next one.
            await self.close()
            raise Unavailable(f"Kafka: {error}") from error
        if not taken:
            self._check_silence(consumer)
        return [self._record(record) for record in taken]

    async def _take(
        self, consumer: AIOKafkaConsumer, max_records: int, wait_s: float = 0.0
    ) -> list[ConsumerRecord]:
        """What has arrived, of each partition in turn; or, if it may wait, what arrives first."""
        batches: dict[TopicPartition, list[ConsumerRecord]] = {}
        if wait_s:
            batches = await consumer.getmany(timeout_ms=int(wait_s * 1000), max_records=max_records)
        else:
            left = max_records
            for partition in self._order:
                # Does not wait, so a cancellation loses nothing.
                batches |= await consumer.getmany(partition, max_records=left)
                left = max_records - sum(map(len, batches.values()))
                if left == 0:
                    break
        for partition, records in batches.items():
            if partition in self._order:
                self._order.remove(partition)
            self._order.append(partition)
            reading = self._readings.setdefault(partition, _Reading())
            reading.offsets.extend(record.offset for record in records)
            self._idle.clear()
        return [record for records in batches.values() for record in records]

    def _check_silence(self, consumer: AIOKafkaConsumer) -> None:
        """The client itself only waits and tries again, however long the brokers are away."""
        if not self._assigned.is_set():
            if time.time() - self._changed_at > _JOINED_WITHIN_S:
                raise Unavailable(f"Kafka has not let a member into the group {self._group}")
            return
        answers_ms = [consumer.last_poll_timestamp(each) or 0 for each in self._order]
        last = max(self._changed_at, max(answers_ms, default=0) / 1000)
        # A member may have no partition, and then nobody to hear from.
        if answers_ms and time.time() - last > _SILENT_S:
            raise Unavailable(f"Kafka has not answered for {time.time() - last:.0f} s")

    def _record(self, record: ConsumerRecord) -> Record:
        return Record(
            topic=str(self._topics[record.topic]),
            key=record.key.decode() if record.key else "",
            value=record.value or b"",
            position=f"{record.partition}:{record.offset}",
            headers={name: value.decode(errors="replace") for name, value in record.headers},
            attributes=locate(record.partition, record.offset),
        )

    @asynccontextmanager
    async def holding(self) -> AsyncIterator[None]:
        self._let_go.clear()
        scope = self._holding = asyncio.timeout(None)
        try:
            async with scope:
                yield
        except TimeoutError:
            if not scope.expired():
                raise
        finally:
            self._holding = None
            self._let_go.set()

    async def commit(self, records: Sequence[Record]) -> None:
        for record in records:
            partition, offset = map(int, record.position.split(":"))
            reading = self._readings.get(
                TopicPartition(self._address.named(record.topic), partition)
            )
            # Else it is another member's by now, or was committed before.
            if reading is not None and offset in reading.offsets:
                reading.done.add(offset)
        readings = dict(self._readings)
        ends = {
            partition: end
            for partition, reading in readings.items()
            if (end := reading.next_offset()) is not None
        }
        if not ends or self._consumer is None:
            return
        async with within(ASK_S):
            try:
                await self._consumer.commit(ends)
            except (CommitFailedError, IllegalStateError) as error:
                _log.warning("group %s did not take a commit: %s", self._group, error)
                return
        for partition, end in ends.items():
            readings[partition].forget_below(end)
        self._settle()

    def _settle(self) -> None:
        if not any(reading.offsets for reading in self._readings.values()):
            self._idle.set()

    async def on_partitions_revoked(self, revoked: object) -> None:
        """Part of a rebalance, which goes on when this returns."""
        self._assigned.clear()
        self._changed_at = time.time()
        try:
            async with asyncio.timeout(self._drain_s):
                await self._idle.wait()
        except TimeoutError:
            await self._drop()
        self._forget()

    async def _drop(self) -> None:
        left = sum(len(reading.offsets) for reading in self._readings.values())
        _log.warning("group %s: %d records go on to other members unfinished", self._group, left)
        if self._holding is not None:
            self._holding.reschedule(asyncio.get_running_loop().time())
            with suppress(TimeoutError):
                async with asyncio.timeout(_CANCELLED_WITHIN_S):
                    await self._let_go.wait()

    def _forget(self) -> None:
        self._readings.clear()
        self._order.clear()
        self._idle.set()

    async def on_partitions_assigned(self, assigned: set[TopicPartition]) -> None:
        self._changed_at = time.time()
        known = set(self._order)
        self._order.extend(sorted(assigned - known))
        self._assigned.set()

    async def close(self) -> None:
        """As the port says. Where Kafka is away, the member's session has to run out."""
        consumer, self._consumer = self._consumer, None
        # A rebalance under way waits no longer.
        self._forget()
        self._assigned.clear()
        if consumer is not None:
            await _close(consumer)


async def _close(consumer: AIOKafkaConsumer) -> None:
    try:
        async with asyncio.timeout(_CLOSED_WITHIN_S):
            await consumer.stop()
    except TimeoutError:
        # It is waiting for an answer. Its tasks would go on to do so.
        coordinator, fetcher = consumer._coordinator, consumer._fetcher
        if coordinator is not None:
            await coordinator._stop_heartbeat_task()
            await coordinator._stop_commit_offsets_refresh_task()
        if fetcher is not None:
            await fetcher.close()
        await consumer._client.close()
