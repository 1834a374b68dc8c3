"""The loop: nothing is lost, nothing blocks, nothing is done before it is handled."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from feed.v1.events_pb2 import EngagementEvent, PostEvent
from prometheus_client import REGISTRY

from mesh import telemetry
from mesh.errors import InvalidArgument, Unavailable
from stores.events.codec import encode
from stores.events.port import EventLog, OutgoingRecord, Record, Topic
from tests.eventually import eventually
from tests.fixtures.sql import fresh_ids
from tests.workers.backstage import Backstage, engagement_event, post_event
from workers import consumer
from workers.consumer import Consumer, Delivery, origin

GROUP = "testing"


@dataclass
class Recorder:
    """Notes the post ids of its calls, and does `react` first."""

    react: Callable[[Sequence[int]], Awaitable[None]] | None = None
    together: bool = False
    group: str = GROUP
    topics: tuple[Topic, ...] = (Topic.POSTS, Topic.ENGAGEMENTS)
    max_records: int = 32
    calls: list[list[int]] = field(default_factory=list)

    async def handle(self, deliveries: Sequence[Delivery]) -> None:
        post_ids = []
        for delivery in deliveries:
            assert isinstance(delivery.event, PostEvent | EngagementEvent)
            post_ids.append(delivery.event.post_id)
        if self.react is not None:
            await self.react(post_ids)
        self.calls.append(post_ids)

    @property
    def handled(self) -> list[int]:
        return [post_id for call in self.calls for post_id in call]


@asynccontextmanager
async def consuming(worker: Recorder, events: EventLog) -> AsyncIterator[None]:
    task = asyncio.create_task(Consumer(worker, events).run())
    try:
        yield
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.fixture(autouse=True)
def short_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consumer, "_BACKOFF_S", (0.01,))


def handled_total(topic: Topic, outcome: str) -> float:
    labels = {"topic": topic, "group": GROUP, "outcome": outcome}
    return REGISTRY.get_sample_value("events_handled_total", labels) or 0


async def dead(backstage: Backstage, topic: Topic) -> list[Record]:
    """What is in the topic's grave."""
    grave: Any = f"{topic}.dead"
    subscription = await backstage.stores.events().subscribe("gravediggers", [grave])
    try:
        return await subscription.read(100, 0.1)
    finally:
        await subscription.close()


async def test_every_event_is_handled_and_committed(backstage: Backstage) -> None:
    events, worker = backstage.stores.events(), Recorder()
    post_ids = fresh_ids(70)
    before = handled_total(Topic.POSTS, "ok")
    async with consuming(worker, events):
        await backstage.publish(*(post_event(post_id, 1 + post_id % 5) for post_id in post_ids))
        await eventually(lambda: len(worker.handled) == 70)

        async def committed() -> bool:
            return await events.lag(GROUP, Topic.POSTS) == 0

        await eventually(committed)
    assert Counter(worker.handled) == Counter(post_ids)
    assert handled_total(Topic.POSTS, "ok") - before == 70


async def test_a_lag_that_cannot_be_told_ends_no_worker(
    backstage: Backstage, monkeypatch: pytest.MonkeyPatch
) -> None:
    events, worker = backstage.stores.events(), Recorder()
    asked = asyncio.Event()

    async def broken(*_: object) -> int:
        asked.set()
        raise ValueError("half an answer")

    monkeypatch.setattr(events, "lag", broken)
    [post_id] = fresh_ids(1)
    async with consuming(worker, events):
        await asked.wait()
        await backstage.publish(post_event(post_id, 1))
        await eventually(lambda: worker.handled == [post_id])


async def test_events_of_one_key_stay_in_order_while_others_overtake(
    backstage: Backstage,
) -> None:
    slow_1, slow_2, quick = fresh_ids(3)
    go_on = asyncio.Event()

    async def hold(post_ids: Sequence[int]) -> None:
        if post_ids == [slow_1]:
            await go_on.wait()

    worker = Recorder(hold)
    await backstage.publish(post_event(slow_1, 1), post_event(slow_2, 1), post_event(quick, 2))
    async with consuming(worker, backstage.stores.events()):
        await eventually(lambda: worker.handled == [quick])
        go_on.set()
        await eventually(lambda: worker.handled == [quick, slow_1, slow_2])


async def test_a_batch_is_what_was_read_of_one_topic(backstage: Backstage) -> None:
    one, two, liked = fresh_ids(3)
    worker = Recorder(together=True)
    await backstage.publish(
        post_event(one, 1),
        engagement_event(9, liked, EngagementEvent.ACTION_LIKED),
        post_event(two, 2),
    )
    async with consuming(worker, backstage.stores.events()):
        await eventually(lambda: len(worker.handled) == 3)
    assert sorted(worker.calls) == [[one, two], [liked]]


@pytest.mark.parametrize("together", [False, True])
async def test_garbage_is_buried_with_the_reason_and_holds_up_nobody(
    backstage: Backstage, together: bool
) -> None:
    events, worker = backstage.stores.events(), Recorder(together=together)
    [post_id] = fresh_ids(1)
    before = handled_total(Topic.POSTS, "dead")
    await events.publish(
        [
            OutgoingRecord(Topic.POSTS, "1", garbage, {"event_id": "bad"})
            for garbage in (b"\xff\xfe", b"not json", b"[]", b'{"post_id": "many"}')
        ]
    )
    await backstage.publish(post_event(post_id, 1))
    async with consuming(worker, events):
        await eventually(lambda: worker.handled == [post_id])
    assert handled_total(Topic.POSTS, "dead") - before == 4
    buried = await dead(backstage, Topic.POSTS)
    assert [record.value for record in buried][:2] == [b"\xff\xfe", b"not json"]
    assert all(record.headers["dead_reason"].startswith("INVALID") for record in buried)


@pytest.mark.parametrize("together", [False, True])
async def test_an_event_that_fails_five_times_is_buried_and_the_others_are_handled(
    backstage: Backstage, together: bool
) -> None:
    bad, *good = fresh_ids(4)
    tries: Counter[int] = Counter()

    async def fail_on_bad(post_ids: Sequence[int]) -> None:
        if bad in post_ids:
            tries[len(post_ids)] += 1
            raise LookupError("no such thing")

    worker = Recorder(fail_on_bad, together)
    await backstage.publish(*(post_event(post_id, 1) for post_id in (good[0], bad, *good[1:])))
    async with consuming(worker, backstage.stores.events()):
        await eventually(lambda: len(worker.handled) == 3)
        await eventually(lambda: tries[1] == 5)
    assert sorted(worker.handled) == sorted(good)
    [buried] = await dead(backstage, Topic.POSTS)
    assert buried.headers["dead_reason"] == "LookupError: no such thing"


async def test_what_a_store_calls_invalid_is_not_tried_again(backstage: Backstage) -> None:
    [bad] = fresh_ids(1)
    tries = 0

    async def refuse(post_ids: Sequence[int]) -> None:
        nonlocal tries
        tries += 1
        raise InvalidArgument("too long")

    await backstage.publish(post_event(bad, 1))
    async with consuming(Recorder(refuse), backstage.stores.events()):

        async def buried() -> bool:
            return bool(await dead(backstage, Topic.POSTS))

        await eventually(buried)
    assert tries == 1


async def test_while_a_backend_is_away_the_group_waits_and_then_goes_on(
    backstage: Backstage, caplog: pytest.LogCaptureFixture
) -> None:
    post_ids = fresh_ids(5)
    away = True
    tries = 0

    async def need_backend(post_ids: Sequence[int]) -> None:
        nonlocal tries
        tries += 1
        if away:
            raise Unavailable("the backend is away")

    worker = Recorder(need_backend)
    events = backstage.stores.events()
    await backstage.publish(*(post_event(post_id, 1) for post_id in post_ids))
    with caplog.at_level("INFO", "workers.consumer"):
        async with consuming(worker, events):
            # Far more often than an event that is itself at fault would be tried.
            await eventually(lambda: tries > 20)
            assert await events.lag(GROUP, Topic.POSTS) == 5
            away = False
            await eventually(lambda: worker.handled == post_ids)
    assert await dead(backstage, Topic.POSTS) == []
    lines = [record.message for record in caplog.records]
    assert sum("waits: UNAVAILABLE" in line for line in lines) == 1
    assert sum("goes on" in line for line in lines) == 1


async def test_what_was_not_finished_at_a_stop_comes_again(backstage: Backstage) -> None:
    [post_id] = fresh_ids(1)
    begun = asyncio.Event()

    async def never_end(post_ids: Sequence[int]) -> None:
        begun.set()
        await asyncio.Event().wait()

    await backstage.publish(post_event(post_id, 1))
    async with consuming(Recorder(never_end), backstage.stores.events()):
        await begun.wait()
    second = Recorder()
    async with consuming(second, backstage.stores.events()):
        await eventually(lambda: second.handled == [post_id])


class Flaky:
    """An event log whose named call fails some times, before or after it had its effect."""

    def __init__(self, target: Any, method: str, times: int) -> None:
        self._target = target
        self._method = method
        self.left = times

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name == self._method:

            async def fail_then_work(*args: Any) -> Any:
                result = await found(*args)
                if self.left:
                    self.left -= 1
                    raise Unavailable("the answer was lost")
                return result

            return fail_then_work
        if name == "subscribe":

            async def subscribe(*args: Any) -> Any:
                return FlakySubscription(self, await found(*args), self._method)

            return subscribe
        return found


class FlakySubscription:
    def __init__(self, log: Flaky, target: Any, method: str) -> None:
        self._log, self._target, self._method = log, target, method

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._target, name)
        if name != self._method:
            return found

        async def fail_then_work(*args: Any) -> Any:
            result = await found(*args)
            if self._log.left:
                self._log.left -= 1
                raise Unavailable("the answer was lost")
            return result

        return fail_then_work


@pytest.mark.parametrize("method", ["subscribe", "read", "commit", "bury"])
async def test_an_event_log_whose_answers_get_lost_loses_no_event(
    backstage: Backstage, method: str
) -> None:
    good, bad = fresh_ids(2)

    async def refuse_bad(post_ids: Sequence[int]) -> None:
        if bad in post_ids:
            raise InvalidArgument("bad")

    log: Any = Flaky(backstage.stores.events(), method, times=3)
    worker = Recorder(refuse_bad)
    await backstage.publish(post_event(bad, 1), post_event(good, 2))
    async with consuming(worker, log):

        async def done() -> bool:
            return await backstage.stores.events().lag(GROUP, Topic.POSTS) == 0

        await eventually(done)
    assert good in worker.handled
    assert await dead(backstage, Topic.POSTS)
    assert log.left < 3


@pytest.mark.usefixtures("spans")
def test_events_of_one_trace_are_handled_in_that_trace() -> None:
    with telemetry.span("request"):
        headers = encode(post_event(1, 2), "a").headers
        trace_id = telemetry.trace_id()
    context, links = origin([headers, headers])
    with telemetry.span("process", context=context):
        assert telemetry.trace_id() == trace_id
    assert links == []


@pytest.mark.usefixtures("spans")
def test_events_of_many_traces_are_linked_by_a_trace_of_its_own() -> None:
    trace_ids, headers = [], []
    for number in range(3):
        with telemetry.span("request"):
            headers.append(encode(post_event(number, 2), str(number)).headers)
            trace_ids.append(telemetry.trace_id())
    context, links = origin([*headers, {}])
    assert [f"{link.context.trace_id:032x}" for link in links] == trace_ids
    with telemetry.span("process", context=context):
        assert telemetry.trace_id() not in trace_ids
