"""All workers together: what follows from a write, once, and in that write's trace."""

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from mesh import telemetry
from stores.events.port import OutgoingRecord, Topic
from stores.mailboxes.port import Box
from tests.fixtures.sql import fresh_ids
from tests.workers.backstage import Backstage
from workers.runner import run_workers


async def test_an_unknown_worker_is_refused_by_name(backstage: Backstage) -> None:
    with pytest.raises(ValueError, match=r"no such worker: ranker; known: relay, fanout"):
        await run_workers(backstage.settings, backstage.stores, ["relay", "ranker"])


async def test_the_workers_end_whenever_they_are_told_to(backstage: Backstage) -> None:
    [author] = fresh_ids(1)
    for moment in range(20):
        working = asyncio.create_task(run_workers(backstage.settings, backstage.stores))
        await backstage.post(author, "something to do")
        # Anywhere from their first connection to their first commit.
        await asyncio.sleep(moment / 200)
        working.cancel()
        async with asyncio.timeout(5):
            await asyncio.gather(working, return_exceptions=True)
    async with backstage.running():
        await backstage.settled(within_s=60)


async def test_everything_that_follows_from_a_post_is_in_the_trace_of_its_request(
    backstage: Backstage, spans: InMemorySpanExporter
) -> None:
    author, reader = fresh_ids(2)
    await backstage.stores.graph().follow_many([(reader, author)])
    await backstage.open_mailboxes(reader)
    async with backstage.running():
        with telemetry.as_service("gateway"), telemetry.span("POST /post") as request:
            post_id = await backstage.post(author, "A trace goes on where its request ended.")
        await backstage.settled(within_s=60)
    assert await backstage.mailbox(reader) == [post_id]
    assert await backstage.stores.vectors().retrieve([post_id])

    trace = Tree(spans.get_finished_spans(), request.get_span_context().trace_id)
    [root] = trace.named("POST /post")
    [send] = trace.named("send feed.posts.v1")
    assert trace.parent(send) is root
    assert send.kind is SpanKind.PRODUCER
    processes = trace.named("process feed.posts.v1")
    by_group = {group(each): each for each in processes}
    assert set(by_group) == {"embedding", "fanout"}
    for process in processes:
        assert trace.parent(process) is send
        assert process.kind is SpanKind.CONSUMER
        assert process.attributes is not None
        assert process.attributes["messaging.system"] == "redis"
        assert process.attributes["messaging.destination.name"] == "feed.posts.v1"
        assert process.attributes["messaging.operation.type"] == "process"
        assert process.attributes["messaging.message.id"]
    assert {"embed texts", "edge.v1.VectorService/Upsert"} <= trace.below(by_group["embedding"])
    stores = {
        (each.attributes or {}).get("db.system.name") or (each.attributes or {}).get("db.system")
        for each in trace.spans
        if each.kind is SpanKind.CLIENT and trace.is_below(each, by_group["fanout"])
    }
    assert stores == {"sqlite", "redis"}
    workers = [send, *processes]
    assert {each.resource.attributes["service.name"] for each in workers} == {"workers"}


async def test_polling_makes_no_spans(backstage: Backstage, spans: InMemorySpanExporter) -> None:
    [author] = fresh_ids(1)
    async with backstage.running():
        spans.clear()
        with telemetry.span("POST /post"):
            await backstage.post(author, "one post, one trace")
        with telemetry.span("the test's own polling"):
            await backstage.settled(within_s=60)
    roots = {each.name for each in spans.get_finished_spans() if each.parent is None}
    assert roots <= {
        "POST /post",
        "the test's own polling",
        "purge impressions",
        "purge idempotency keys",
        "clean up media",
        "tidy log",
    }


async def test_every_event_may_arrive_twice(backstage: Backstage) -> None:
    author, other, reader = fresh_ids(3)
    posts, features = backstage.stores.posts(), backstage.stores.features()
    await backstage.open_mailboxes(reader)
    for user in (author, other):
        await backstage.stores.mailboxes().finish_build(Box("authored", user), [])

    async with backstage.running():
        await backstage.follow(reader, author)
        await backstage.follow(reader, other)
        liked = [await backstage.post(author, f"Bread and butter, part {n}.") for n in range(3)]
        gone = await backstage.post(author, "This will not stay.")
        others = await backstage.post(other, "A comet passed by last night.")
        await backstage.settled(within_s=60)
        # An author's rate is taken at a like: the viewers come first here.
        await backstage.show(reader, [*liked, others], dwell_ms=4_000)
        await backstage.settled()
        for post_id in (*liked, others):
            await backstage.like(reader, post_id)
        await backstage.unlike(reader, liked[0])
        await backstage.delete(gone, author)
        await backstage.unfollow(reader, other)
        await backstage.settled()

        everything = [*liked, gone, others]

        async def state() -> tuple[object, ...]:
            user = await features.user(reader)
            assert user.interest_vector is not None
            return (
                await backstage.mailbox(reader),
                await backstage.authored(author),
                sorted(await backstage.stores.vectors().retrieve(everything)),
                [
                    known and (known.like_count, known.viewer_count)
                    for known in await features.posts(everything)
                ],
                await features.popular(10),
                await features.unproven(10),
                [await features.user(user) for user in (author, other)],
                await backstage.stores.impressions().seen(reader, 0, 100),
                sorted(await posts.authors(everything)),
            )

        once = await state()
        taste = (await features.user(reader)).interest_vector
        affinities = await features.affinities(reader, [author, other])
        assert once[0] == liked[::-1]
        await repeat_every_event(backstage)
        await backstage.settled()
        assert await state() == once
        assert np.asarray((await features.user(reader)).interest_vector) == pytest.approx(
            np.asarray(taste), abs=1e-4
        )
        assert await features.affinities(reader, [author, other]) == pytest.approx(
            affinities, abs=1e-3
        )


async def repeat_every_event(backstage: Backstage) -> None:
    events = backstage.stores.events()
    subscription = await events.subscribe("repeaters", list(Topic))
    records = await subscription.read(1_000, 0.05)
    await subscription.close()
    await events.publish(
        [OutgoingRecord(each.topic, each.key, each.value, each.headers) for each in records]
    )


def group(span: ReadableSpan) -> str:
    return str((span.attributes or {}).get("messaging.consumer.group.name"))


class Tree:
    """The finished spans of one trace."""

    def __init__(self, spans: Sequence[ReadableSpan], trace_id: int) -> None:
        self.spans = [each for each in spans if each.context and each.context.trace_id == trace_id]
        self._by_id = {each.context.span_id: each for each in self.spans if each.context}

    def named(self, name: str) -> list[ReadableSpan]:
        return [each for each in self.spans if each.name == name]

    def parent(self, span: ReadableSpan) -> ReadableSpan | None:
        return self._by_id.get(span.parent.span_id) if span.parent else None

    def is_below(self, span: ReadableSpan, above: ReadableSpan) -> bool:
        parent = self.parent(span)
        return parent is not None and (parent is above or self.is_below(parent, above))

    def below(self, above: ReadableSpan) -> set[str]:
        return {each.name for each in self.spans if self.is_below(each, above)}
