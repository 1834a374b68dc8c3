"""The one loop of every consumer group: read, handle, commit.

Delivery is at least once, and records are committed after their effect, so handlers must bear
repeats. A handler's failure never loses a record: while a backend is away its group waits, and a
record that cannot be handled goes to `<topic>.dead` with the reason, past which the others go on.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from feed.v1.events_pb2 import (
    EngagementEvent,
    GraphEvent,
    ImpressionEvent,
    PostEvent,
    ServedFeedEvent,
)
from opentelemetry.context import Context
from opentelemetry.instrumentation.utils import suppress_instrumentation as untraced
from opentelemetry.trace import Link, SpanKind

from mesh import metrics, telemetry
from mesh.errors import DeadlineExceeded, FeedError, InvalidArgument, Unavailable
from mesh.ids import now_ms
from stores.events.codec import decode
from stores.events.port import EventLog, Record, Subscription, Topic
from stores.events.spans import messaging

_log = logging.getLogger(__name__)

FeedEvent = PostEvent | GraphEvent | EngagementEvent | ImpressionEvent | ServedFeedEvent
_MESSAGES: Mapping[str, type[FeedEvent]] = {
    Topic.POSTS: PostEvent,
    Topic.GRAPH: GraphEvent,
    Topic.ENGAGEMENTS: EngagementEvent,
    Topic.IMPRESSIONS: ImpressionEvent,
    Topic.SERVED: ServedFeedEvent,
}
# A backend that is away is nobody's fault but its own: its group waits instead of failing.
AWAY = (Unavailable, DeadlineExceeded)
TRIES = 5
_BACKOFF_S = (0.1, 0.5, 2.0, 5.0)
_WAIT_S = 1.0
_LAG_EVERY_S = 5.0


@dataclass(frozen=True, slots=True)
class Delivery:
    """A record of the event log, and the event it carries."""

    record: Record
    event: FeedEvent


class Worker(Protocol):
    """What one consumer group does about some topics."""

    @property
    def group(self) -> str:
        """The group's name in the event log."""
        ...

    @property
    def topics(self) -> Sequence[Topic]: ...

    @property
    def max_records(self) -> int:
        """How many records are read, and handled, at once."""
        ...

    @property
    def together(self) -> bool:
        """Whether `handle` gets what was read of a topic in one call.

        Otherwise it gets one record a call, in that event's own trace; calls for different keys
        run concurrently, those for one key in order.
        """
        ...

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        """Brings about what the events ask for; any of them may have been handled before.

        An event only says that something changed: what is true now is read from the stores.
        """
        ...


def backoff_s(attempt: int) -> float:
    """Seconds to wait after the failed attempt; the first is 0."""
    return _BACKOFF_S[min(attempt, len(_BACKOFF_S) - 1)]


def stop_if_cancelled() -> None:
    """Ends this task if it was cancelled and did not notice. Every endless loop asks here.

    asyncio.wait_for of Python 3.11 loses a cancellation that arrives just when what it waits for is
    done. `stores.redis_connections` keeps that out of our own calls; a library may still do it.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class Pause:
    """Notes when something stops for a backend's sake and when it goes on; logs both, once.

    Args:
        what: What stops, for the log line.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._since: float | None = None

    def begin(self, error: BaseException) -> None:
        if self._since is None:
            self._since = time.monotonic()
            unforeseen = None if isinstance(error, FeedError) else error
            reason = telemetry.error_type(error)
            _log.warning("%s waits: %s: %s", self._what, reason, error, exc_info=unforeseen)

    def end(self) -> None:
        if self._since is not None:
            _log.info("%s goes on after %.1f s", self._what, time.monotonic() - self._since)
            self._since = None


class Consumer:
    """Runs one worker on its topics.

    Args:
        worker: What to do.
        events: Where records come from.
        gather_s: Seconds that records may wait for others to be handled with, unless there are
            `max_records` before.
    """

    def __init__(self, worker: Worker, events: EventLog, gather_s: float = 0.0) -> None:
        self._worker = worker
        self._events = events
        self._gather_s = gather_s
        self._pause = Pause(f"consumer {worker.group}")
        for topic in worker.topics:
            # Of a series that begins with the first dead record, that one is no increase.
            metrics.EVENTS_HANDLED.labels(topic, worker.group, "dead")

    async def run(self) -> None:
        """Runs until cancelled; what was not committed by then comes again at the next start."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._measure_lag())
            tasks.create_task(self._consume_forever())

    async def _consume_forever(self) -> None:
        attempt = 0
        while True:
            stop_if_cancelled()
            try:
                with untraced():
                    subscription = await self._events.subscribe(
                        self._worker.group, self._worker.topics
                    )
                try:
                    while True:
                        stop_if_cancelled()
                        await self._step(subscription)
                        attempt = 0
                finally:
                    with suppress(FeedError), untraced():
                        await subscription.close()
            except Exception as error:
                # Also what nobody foresaw. A new subscription begins with the uncommitted records,
                # so none is lost with an answer that did not arrive.
                self._pause.begin(error)
                await asyncio.sleep(backoff_s(attempt))
                attempt += 1

    async def _step(self, subscription: Subscription) -> None:
        # Polling is no work of anybody's: its spans would bury those that are.
        with untraced():
            records = await self._gather(subscription)
        if records:
            async with subscription.holding():
                await self._handle_all(records)
                with untraced():
                    await self._insist(partial(subscription.commit, records))
        self._pause.end()

    async def _gather(self, subscription: Subscription) -> list[Record]:
        most, now = self._worker.max_records, asyncio.get_running_loop().time
        records = await subscription.read(most, _WAIT_S)
        until = now() + self._gather_s
        while records and len(records) < most and now() < until:
            stop_if_cancelled()
            wait_s = min(until - now(), _WAIT_S)
            records += await subscription.read(most - len(records), wait_s)
        return records

    async def _insist(self, work: Callable[[], Awaitable[None]]) -> None:
        """Tries until the event log is there to answer: a new subscription would bring repeats."""
        attempt = 0
        while True:
            stop_if_cancelled()
            try:
                await work()
                return
            except AWAY as error:
                self._pause.begin(error)
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    async def _handle_all(self, records: Sequence[Record]) -> None:
        pieces: dict[str, list[Delivery]] = defaultdict(list)
        for record in records:
            try:
                event = decode(record, _MESSAGES[record.topic])
            except (InvalidArgument, KeyError) as error:
                await self._bury(record, error)
                continue
            piece = record.topic if self._worker.together else record.key
            pieces[piece].append(Delivery(record, event))
        if self._worker.together:
            for deliveries in pieces.values():
                await self._finish(deliveries)
            return
        async with asyncio.TaskGroup() as tasks:
            for deliveries in pieces.values():
                tasks.create_task(self._finish_in_order(deliveries))

    async def _finish_in_order(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            await self._finish([delivery])

    async def _finish(self, deliveries: Sequence[Delivery]) -> None:
        """Returns when every event had its effect, or is buried."""
        attempt = failures = 0
        while True:
            stop_if_cancelled()
            try:
                await self._attempt(deliveries, attempt)
                return
            except AWAY as error:
                self._pause.begin(error)
            except Exception as error:
                if len(deliveries) > 1:
                    # Perhaps only one of them is bad. Alone, each answers for itself.
                    await self._finish_in_order(deliveries)
                    return
                failures += 1
                # What the stores call invalid stays so.
                if failures == TRIES or isinstance(error, InvalidArgument):
                    await self._bury(deliveries[0].record, error)
                    return
            for delivery in deliveries:
                self._count(delivery.record, "retried")
            await asyncio.sleep(backoff_s(attempt))
            attempt += 1

    async def _attempt(self, deliveries: Sequence[Delivery], number: int) -> None:
        with self._processing(deliveries, number):
            try:
                await self._worker.handle(deliveries)
            except AWAY:
                raise
            except Exception as error:
                # Within the span, so that the line carries the event's trace.
                reason = telemetry.error_type(error)
                _log.warning("consumer %s failed: %s: %s", self._worker.group, reason, error)
                raise
            for delivery in deliveries:
                self._done(delivery)
        self._pause.end()

    def _done(self, delivery: Delivery) -> None:
        self._count(delivery.record, "ok")
        delay = metrics.EVENT_DELAY.labels(delivery.record.topic, self._worker.group)
        metrics.observe(delay, max(now_ms() - occurred_at_ms(delivery.event), 0) / 1000)

    async def _bury(self, record: Record, error: Exception) -> None:
        reason = f"{telemetry.error_type(error)}: {error}"
        attributes = {**messaging(self._events, record.topic, "send"), "feed.dead_reason": reason}

        async def bury() -> None:
            with telemetry.span(
                f"send {record.topic}.dead",
                kind=SpanKind.PRODUCER,
                attributes=attributes,
                context=telemetry.extract(record.headers),
            ):
                await self._events.bury(record, reason)
                _log.error(
                    "consumer %s gave up on event %s of %s: %s",
                    self._worker.group, record.event_id, record.topic, reason,
                )  # fmt: skip

        await self._insist(bury)
        self._count(record, "dead")

    @contextmanager
    def _processing(self, deliveries: Sequence[Delivery], attempt: int) -> Iterator[None]:
        records = [delivery.record for delivery in deliveries]
        topic = records[0].topic
        attributes = messaging(self._events, topic, "process")
        attributes["messaging.consumer.group.name"] = self._worker.group
        if len(records) == 1:
            attributes["messaging.message.id"] = records[0].event_id
            attributes.update(records[0].attributes)
        else:
            attributes["messaging.batch.message_count"] = len(records)
        oldest_ms = min(occurred_at_ms(delivery.event) for delivery in deliveries)
        attributes["feed.event.age_ms"] = max(now_ms() - oldest_ms, 0)
        if attempt:
            attributes["feed.event.previous_attempts"] = attempt
        if redeliveries := max(record.redeliveries for record in records):
            attributes["feed.event.redeliveries"] = redeliveries
        context, links = origin([record.headers for record in records])
        with telemetry.span(
            f"process {topic}",
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            context=context,
            links=links,
        ):
            yield

    def _count(self, record: Record, outcome: str) -> None:
        metrics.EVENTS_HANDLED.labels(record.topic, self._worker.group, outcome).inc()

    async def _measure_lag(self) -> None:
        while True:
            stop_if_cancelled()
            for topic in self._worker.topics:
                try:
                    with suppress(FeedError), untraced():
                        lag = await self._events.lag(self._worker.group, topic)
                        metrics.EVENT_LAG.labels(topic, self._worker.group).set(lag)
                except Exception:
                    # What nobody foresaw: a number that is missing must not end the work itself.
                    _log.exception("cannot tell how far %s is behind", self._worker.group)
            await asyncio.sleep(_LAG_EVERY_S)


def origin(headers: Sequence[Mapping[str, str]]) -> tuple[Context, list[Link]]:
    """Where one piece of work for several events belongs among traces.

    When all events come from one trace it continues that trace, below the first event's span; else
    it is a trace of its own. Either way it links to the spans that it does not hang below.
    """
    links: dict[tuple[int, int], tuple[Link, Mapping[str, str]]] = {}
    for each in headers:
        for link in telemetry.link_to(each):
            links.setdefault((link.context.trace_id, link.context.span_id), (link, each))
    if len({trace_id for trace_id, _ in links}) != 1:
        return Context(), [link for link, _ in links.values()]
    (_, first), *others = links.values()
    return telemetry.extract(first), [link for link, _ in others]


def occurred_at_ms(event: FeedEvent) -> int:
    """When what the event tells of happened, in milliseconds since the epoch."""
    if isinstance(event, ServedFeedEvent):
        return event.served_at_ms
    return event.seen_at_ms if isinstance(event, ImpressionEvent) else event.occurred_at_ms
