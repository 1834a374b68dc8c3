"""What a feed tells the event log of itself."""

import asyncio
from typing import Any

import numpy as np
import pytest
from feed.v1 import events_pb2

from mesh.errors import Unavailable
from mesh.settings import Settings
from ranker_svc.features import CATEGORICAL, DENSE
from stores.events import codec
from stores.events.port import Record, Subscription, Topic
from stores.events.redis import RedisEventLog
from stores.redis_client import open_redis
from tests.eventually import eventually
from tests.fixtures.served import a_full_feed, served_record
from tests.fixtures.world import Person, World
from tests.gateway.helpers import changed


async def follower(world: World) -> tuple[Person, list[str]]:
    """Of an author of three posts, and the posts."""
    author, reader = await world.sign_up("author"), await world.sign_up("reader")
    await world.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    posts = [await world.post(author, f"chapter {n}") for n in range(3)]

    async def arrived() -> bool:
        page = await world.feed(reader)
        # Where strangers' posts abound, a page has two of one author.
        return len(set(posts) & {item["post_id"] for item in page["items"]}) >= 2

    await eventually(arrived, within_s=60)
    return reader, posts


def patient(world: World) -> Settings:
    """Settings with which a busy machine does not make the stage late."""
    return world.settings.model_copy(update={"feed_deadline_s": 100.0})


async def listening(world: World, reader: Person) -> Subscription:
    return await world.stores.events().subscribe(f"served {reader.user_id}", [Topic.SERVED])


async def told(subscription: Subscription, feed_id: str) -> tuple[Record, Any]:
    """The feed's record, and the event in it."""
    found: list[Record] = []

    async def arrived() -> bool:
        found.extend(r for r in await subscription.read(1000, 0.1) if r.event_id == feed_id)
        return bool(found)

    await eventually(arrived, within_s=30)
    await subscription.close()
    return found[0], codec.decode(found[0], events_pb2.ServedFeedEvent)


async def test_a_feed_tells_all_of_its_order_and_why(world: World) -> None:
    reader, _ = await follower(world)
    subscription = await listening(world, reader)
    page = await world.feed(reader, limit=2)
    record, event = await told(subscription, page["feed_id"])
    assert "served" not in page["degraded"]
    assert record.key == reader.user_id
    assert (event.feed_id, str(event.user_id)) == (page["feed_id"], reader.user_id)
    explained = await world.client.get(f"/feed/{page['feed_id']}/explain", headers=reader.headers)
    facts = explained.json()
    placed = sorted(
        (fate for fate in facts["candidates"] if fate["position"] is not None),
        key=lambda fate: fate["position"],
    )
    assert len(placed) >= 3
    assert event.model_version == facts["model_version"]
    column = np.frombuffer(event.post_ids, "<i8").tolist()
    assert [str(each) for each in column] == [fate["post_id"] for fate in placed]
    authors = np.frombuffer(event.author_ids, "<i8").tolist()
    assert [str(each) for each in authors] == [fate["author_id"] for fate in placed]
    scores = np.frombuffer(event.scores, "<f4")
    assert scores == pytest.approx([fate["score"] for fate in placed], abs=1e-5)
    assert np.frombuffer(event.propensities, "<f4").tolist() == [1] * len(placed)
    assert (tuple(event.dense_names), tuple(event.id_names)) == (DENSE, CATEGORICAL)
    dense = np.frombuffer(event.dense, "<f4").reshape(-1, len(DENSE))
    ids = np.frombuffer(event.ids, "<i8").reshape(-1, len(CATEGORICAL))
    similarities = dense[:, DENSE.index("topic_similarity")]
    assert similarities == pytest.approx([fate["topic_similarity"] for fate in placed], abs=1e-5)
    assert set(ids[:, CATEGORICAL.index("reader")].tolist()) == {int(reader.user_id)}
    assert ids[:, CATEGORICAL.index("author")].tolist() == authors
    sources = np.frombuffer(event.sources, "<i4").tolist()
    assert ids[:, CATEGORICAL.index("source")].tolist() == sources


async def test_a_later_page_tells_nothing_more(world: World) -> None:
    reader, _ = await follower(world)
    subscription = await listening(world, reader)
    first = await world.feed(reader, limit=2)
    await world.feed(reader, limit=2, cursor=first["next_cursor"])
    after = await world.feed(reader, limit=2)
    heard: list[str] = []

    async def arrived() -> bool:
        records = await subscription.read(1000, 0.1)
        heard.extend(r.event_id for r in records if r.key == reader.user_id)
        return after["feed_id"] in heard

    await eventually(arrived, within_s=30)
    await subscription.close()
    assert heard[-2:] == [first["feed_id"], after["feed_id"]]


async def test_without_the_event_log_it_goes_by_the_outbox(world: World) -> None:
    reader, _ = await follower(world)
    subscription = await listening(world, reader)
    with changed(
        world, settings=patient(world), events=RedisEventLog(open_redis("redis://127.0.0.1:9/0"))
    ):
        page = await world.feed(reader)
    assert "served" not in page["degraded"]
    record, event = await told(subscription, page["feed_id"])
    assert event.feed_id == page["feed_id"]
    assert record.headers["traceparent"].split("-")[1] == page["trace_id"]


async def test_an_event_log_that_never_answers_leaves_time_for_the_outbox(world: World) -> None:
    class Stalled(RedisEventLog):
        async def publish(self, records: object) -> None:
            await asyncio.Event().wait()

    reader, _ = await follower(world)
    subscription = await listening(world, reader)
    with changed(world, settings=patient(world), events=Stalled(world.stores.redis)):
        page = await world.feed(reader)
    assert "served" not in page["degraded"]
    _, event = await told(subscription, page["feed_id"])
    assert event.feed_id == page["feed_id"]


async def test_without_log_and_outbox_the_page_says_so(world: World) -> None:
    class Away:
        async def add(self, records: object) -> None:
            raise Unavailable("no database")

    reader, posts = await follower(world)
    dead = RedisEventLog(open_redis("redis://127.0.0.1:9/0"))
    with changed(world, settings=patient(world), events=dead, outbox=Away()):
        page = await world.feed(reader)
    assert "served" in page["degraded"]
    assert {item["post_id"] for item in page["items"]} & set(posts)


def test_a_full_feed_fits_into_the_outbox() -> None:
    # A TEXT of TiDB's is 65,535 bytes.
    assert len(a_full_feed(7, "f" * 32).value) < 50_000


def test_an_empty_feed_without_a_ranker_is_told_too() -> None:
    record = served_record(7, "f" * 32, count=0)
    event = codec.decode(
        Record(record.topic, record.key, record.value, "1"), events_pb2.ServedFeedEvent
    )
    assert (event.feed_id, event.post_ids, event.pool) == ("f" * 32, b"", b"")
