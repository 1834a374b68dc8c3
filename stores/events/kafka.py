"""The event log on Kafka: a record's key decides its partition, and partitions keep order.

The members of a group share the partitions of a topic, so that fan-out can be done by several at a
time. Keys go to partitions as Kafka's own clients send them (murmur2), and as Pinot expects it.
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Collection, Sequence
from contextlib import suppress

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, MessageSizeTooLargeError
from aiokafka.structs import RecordMetadata

from mesh.errors import InvalidArgument, Unavailable
from stores.events.kafka_client import (
    ASK_S,
    DEAD,
    KafkaAddress,
    locate,
    make_topics,
    within,
)
from stores.events.kafka_subscription import DRAIN_S, KafkaSubscription
from stores.events.port import OutgoingRecord, Record, Subscription, Topic
from stores.events.spans import sending

_log = logging.getLogger(__name__)

# How long `publish` waits for some records. The producer itself goes on trying.
PUBLISH_S = 3.0
_AT_ONCE = 500
# Records sent whose answer nobody has got.
_REMEMBERED = 10_000
_FLUSH_S = 2.0
_ANSWER_S = 0.5

Sent = asyncio.Future[RecordMetadata]


class KafkaEventLog:
    """`stores.events.port.EventLog` on Kafka.

    Its clients connect when they are first needed, and find their way back by themselves after the
    brokers were away.

    Args:
        address: Which brokers, and the prefix of topics and groups.
        drain_s: When partitions go to other members, how long a subscription waits until what it
            has read of them is committed.
    """

    system = "kafka"

    def __init__(self, address: KafkaAddress, drain_s: float = DRAIN_S) -> None:
        self._address = address
        self._drain_s = drain_s
        self._made: set[str] = set()
        self._opening = asyncio.Lock()
        self._producer: AIOKafkaProducer | None = None
        self._admin: AIOKafkaAdminClient | None = None
        self._offsets: AIOKafkaConsumer | None = None
        # By topic and event id, so that a record which is published again because the answer was
        # late is not in the log twice.
        self._unanswered: OrderedDict[tuple[str, str], Sent] = OrderedDict()

    @property
    def server(self) -> dict[str, str | int]:
        return self._address.server

    async def publish(self, records: Sequence[OutgoingRecord]) -> None:
        """As the port says.

        After `Unavailable` the producer goes on trying to send what it has taken. Whoever publishes
        a record with the same `event_id` again is then told how that ended, so it is in the log
        once; unless the producer had to be replaced, or it is another process that tries again.
        """
        with sending(self, records) as sent:
            for start in range(0, len(records), _AT_ONCE):
                acknowledged = await self._append(sent.records[start : start + _AT_ONCE])
                for index, metadata in enumerate(acknowledged, start):
                    sent.locate(index, locate(metadata.partition, metadata.offset))

    async def _append(self, records: Sequence[OutgoingRecord]) -> list[RecordMetadata]:
        await self.make_topics({record.topic for record in records})
        async with within(PUBLISH_S):
            producer = await self._open_producer()
            try:
                futures = [await self._send(producer, record) for record in records]
                await asyncio.wait(futures)
                acknowledged = [future.result() for future in futures]
            except MessageSizeTooLargeError as error:
                raise InvalidArgument(f"A record is too large for Kafka: {error}") from error
            except KafkaError:
                # It has given up on a batch, and its sequence has a gap that brokers refuse.
                await self._replace(producer)
                raise
        for identity in filter(None, map(_identity, records)):
            self._unanswered.pop(identity, None)
        return acknowledged

    async def _send(self, producer: AIOKafkaProducer, record: OutgoingRecord) -> Sent:
        """Hands the record to the producer, unless it has it already."""
        identity = _identity(record)
        known = self._unanswered.get(identity) if identity else None
        if known is not None and not (known.done() and known.exception()):
            return known
        future: Sent = await producer.send(
            self._address.named(record.topic),
            record.value,
            record.key.encode(),
            headers=[(name, value.encode()) for name, value in record.headers.items()],
        )
        # If it fails when nobody waits for it any more, nobody needs to be told.
        future.add_done_callback(lambda sent: sent.cancelled() or sent.exception())
        if identity:
            self._unanswered[identity] = future
            if len(self._unanswered) > _REMEMBERED:
                self._unanswered.popitem(last=False)
        return future

    async def subscribe(self, group: str, topics: Sequence[Topic]) -> Subscription:
        await self.make_topics(topics)
        subscription = KafkaSubscription(self._address, group, topics, self._drain_s)
        await subscription.join()
        return subscription

    async def bury(self, record: Record, reason: str) -> None:
        """As the port says; the span is the caller's, who knows why."""
        headers = {**record.headers, "event_id": record.event_id, "dead_reason": reason}
        dead = OutgoingRecord(f"{record.topic}{DEAD}", record.key, record.value, headers)
        await self._append([dead])

    async def lag(self, group: str, topic: Topic) -> int:
        """As the port says, without joining the group."""
        await self.make_topics([topic])
        async with within(ASK_S):
            admin, offsets = await self._open_admin(), await self._open_offsets()
            [described] = await admin.describe_topics([self._address.named(topic)])
            if described["error_code"]:
                raise Unavailable(f"Kafka does not know {topic} now")
            partitions = [
                TopicPartition(described["topic"], each["partition"])
                for each in described["partitions"]
            ]
            ends, begins, committed = await asyncio.gather(
                offsets.end_offsets(partitions),
                offsets.beginning_offsets(partitions),
                admin.list_consumer_group_offsets(
                    self._address.named(group), partitions=partitions
                ),
            )
        if missing := set(partitions) - committed.keys():
            # The client makes no error of the coordinator's that it is still loading.
            raise Unavailable(f"Kafka does not tell what is committed of {len(missing)} partitions")
        # A group that has committed nothing (-1) begins at the oldest record.
        return sum(ends[each] - max(committed[each].offset, begins[each]) for each in partitions)

    async def make_topics(self, topics: Collection[str]) -> None:
        """Makes those topics that are missing; see `stores.events.kafka_client.SHAPES`.

        Raises:
            FailedPrecondition: Kafka does not let us.
            Unavailable: It is away.
        """
        missing = sorted(set(topics) - self._made)
        if missing:
            async with within(ASK_S):
                await make_topics(await self._open_admin(), self._address, missing)
            self._made.update(missing)

    async def close(self) -> None:
        """Sends what waits, if that can be done at once, and closes all connections."""
        async with self._opening:
            producer, admin, offsets = self._producer, self._admin, self._offsets
            self._producer = self._admin = self._offsets = None
        if producer is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(_FLUSH_S):
                    await producer.flush()
            await _close(producer)
        if admin is not None:
            await admin.close()
        if offsets is not None:
            await offsets.stop()

    async def _open_producer(self) -> AIOKafkaProducer:
        async with self._opening:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    bootstrap_servers=list(self._address.servers),
                    enable_idempotence=True,
                    acks="all",
                    # The default, 16 KiB, would make bulks wait for an answer every 50 records.
                    max_batch_size=256 * 1024,
                    request_timeout_ms=10_000,
                    metadata_max_age_ms=30_000,
                )
                try:
                    await producer.start()
                except BaseException:
                    await _close(producer)
                    raise
                self._producer = producer
            return self._producer

    async def _open_admin(self) -> AIOKafkaAdminClient:
        async with self._opening:
            if self._admin is None:
                admin = AIOKafkaAdminClient(
                    bootstrap_servers=list(self._address.servers), request_timeout_ms=5_000
                )
                try:
                    await admin.start()
                except BaseException:
                    await admin.close()
                    raise
                self._admin = admin
            return self._admin

    async def _open_offsets(self) -> AIOKafkaConsumer:
        """A client that only asks where partitions begin and end."""
        async with self._opening:
            if self._offsets is None:
                offsets = AIOKafkaConsumer(
                    bootstrap_servers=list(self._address.servers), request_timeout_ms=5_000
                )
                try:
                    await offsets.start()
                except BaseException:
                    await offsets.stop()
                    raise
                self._offsets = offsets
            return self._offsets

    async def _replace(self, producer: AIOKafkaProducer) -> None:
        async with self._opening:
            if self._producer is producer:
                self._producer = None
                await _close(producer)


async def _close(producer: AIOKafkaProducer) -> None:
    """As its `stop`, which would wait for all records and answers, however long brokers are away.

    Whoever waits for one of them has a deadline.
    """
    producer._closed = True
    sender = producer._sender.sender_task
    # Told once to end, it waits for answers that are under way.
    for _ in range(2):
        if sender is not None and not sender.done():
            sender.cancel()
            await asyncio.wait([sender], timeout=_ANSWER_S)
    await producer.client.close()


def _identity(record: OutgoingRecord) -> tuple[str, str] | None:
    event_id = record.headers.get("event_id")
    return (record.topic, event_id) if event_id else None
