"""Features follow what readers do."""

from collections.abc import AsyncIterator

import numpy as np
import pytest
from feed.v1.events_pb2 import EngagementEvent

from mesh.packing import DIMENSIONS, Vector
from stores.vectors.port import PostVector
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.workers.backstage import Backstage, engagement_event
from workers.popularity import engagement_rate


def axis(number: int) -> Vector:
    vector = np.zeros(DIMENSIONS, np.float32)
    vector[number] = 1
    return vector


@pytest.fixture
async def working(backstage: Backstage) -> AsyncIterator[Backstage]:
    async with backstage.running("relay", "features"):
        yield backstage


async def embedded_post(backstage: Backstage, author_id: int, direction: int) -> int:
    post_id = await backstage.post(author_id, "text")
    await backstage.stores.features().put_post(
        post_id, author_id=author_id, has_media=False, embedding=axis(direction)
    )
    return post_id


async def test_a_like_is_counted_and_makes_the_post_popular(working: Backstage) -> None:
    author, one, two = fresh_ids(3)
    features = working.stores.features()
    older, newer = [await embedded_post(working, author, n) for n in range(2)]
    await working.like(one, older)
    await working.like(two, older)
    await working.like(two, newer)
    await working.settled("features")
    counts = [known.like_count for known in await features.posts([older, newer]) if known]
    assert counts == [2, 1]
    assert [post_id for post_id, _ in await features.popular(2)] == [older, newer]

    await working.unlike(one, older)
    await working.unlike(two, older)
    await working.settled("features")
    [known] = await features.posts([older])
    assert known is not None
    assert known.like_count == 0
    assert [post_id for post_id, _ in await features.popular(2)] == [newer, older]


async def test_likes_become_the_reader_s_taste_and_go_with_an_unlike(working: Backstage) -> None:
    author, other, reader = fresh_ids(3)
    features = working.stores.features()
    liked = [await embedded_post(working, author, 3) for _ in range(3)]
    disliked = await embedded_post(working, other, 4)
    for post_id in (*liked, disliked):
        await working.like(reader, post_id)
    await working.settled("features")
    taste = (await features.user(reader)).interest_vector
    assert taste is not None
    assert taste[3] == pytest.approx(3 / 10**0.5, abs=1e-3)
    assert taste[4] == pytest.approx(1 / 10**0.5, abs=1e-3)
    to_author, to_other, to_nobody = await features.affinities(reader, [author, other, reader])
    assert to_author > to_other > to_nobody == 0

    await working.unlike(reader, disliked)
    await working.settled("features")
    taste = (await features.user(reader)).interest_vector
    assert taste == pytest.approx(axis(3), abs=1e-6)
    assert await features.affinities(reader, [other]) == [0]

    for post_id in liked:
        await working.unlike(reader, post_id)
    await working.settled("features")
    assert (await features.user(reader)).interest_vector is None


async def test_an_embedding_missing_among_the_features_comes_from_the_vectors(
    working: Backstage,
) -> None:
    author, reader = fresh_ids(2)
    post_id = await working.post(author, "text")
    await working.stores.vectors().upsert([PostVector(post_id, author, 1, (), axis(9))])
    await working.like(reader, post_id)
    await working.settled("features")
    taste = (await working.stores.features().user(reader)).interest_vector
    assert taste == pytest.approx(axis(9), abs=1e-3)


async def test_a_like_of_a_post_that_is_not_embedded_yet_warms_to_its_author(
    working: Backstage,
) -> None:
    author, reader = fresh_ids(2)
    await working.like(reader, await working.post(author, "text"))
    await working.settled("features")
    features = working.stores.features()
    assert (await features.user(reader)).interest_vector is None
    assert (await features.affinities(reader, [author]))[0] > 0.5


async def test_a_like_of_a_post_deleted_since_leaves_nothing_behind(backstage: Backstage) -> None:
    author, reader = fresh_ids(2)
    post_id = await backstage.post(author, "text")
    await backstage.delete(post_id, author)
    await backstage.publish(engagement_event(reader, post_id, EngagementEvent.ACTION_LIKED))
    async with backstage.running("features"):
        await backstage.stores.outbox().published(
            [row.row_id for row in await backstage.stores.outbox().pending(10)]
        )
        await backstage.settled("features")
    assert await backstage.stores.features().popular(10) == []
    assert await backstage.stores.features().posts([post_id]) == [None]


async def test_followers_are_counted(working: Backstage) -> None:
    author, one, two = fresh_ids(3)
    features = working.stores.features()
    await working.follow(one, author)
    await working.follow(two, author)
    await working.settled("features")
    assert (await features.user(author)).follower_count == 2
    await working.block(author, one)
    await working.settled("features")
    assert (await features.user(author)).follower_count == 1


async def test_viewers_are_counted_once_and_prove_a_post(working: Backstage) -> None:
    author, *readers = fresh_ids(4)
    features = working.stores.features()
    post_id, other = [await embedded_post(working, author, 1) for _ in range(2)]
    await features.put_unproven([post_id, other])
    for reader in readers[:2]:
        await working.show(reader, [post_id, other])
        await working.show(reader, [post_id])
    await working.settled("features")
    [known] = await features.posts([post_id])
    assert known is not None
    assert known.viewer_count == 2
    assert set(await features.unproven(10)) == {post_id, other}

    await working.show(readers[2], [post_id])
    await working.settled("features")
    assert await features.unproven(10) == [other]


async def test_an_author_s_rate_is_likes_by_viewers(working: Backstage) -> None:
    author, one, two = fresh_ids(3)
    post_id = await embedded_post(working, author, 1)
    await working.show(one, [post_id])
    await working.show(two, [post_id])
    await working.settled("features")
    await working.like(one, post_id)
    await working.settled("features")
    rate = (await working.stores.features().user(author)).avg_engagement_rate
    assert rate == pytest.approx(engagement_rate(1, 2))


async def test_a_long_look_is_a_weak_like_and_a_short_one_nothing(working: Backstage) -> None:
    author, reader, hasty = fresh_ids(3)
    looked_at, liked = [await embedded_post(working, author, n) for n in (1, 2)]
    features = working.stores.features()
    await working.show(hasty, [looked_at], dwell_ms=2_999)
    await working.show(reader, [looked_at], dwell_ms=3_000)
    await working.settled("features")
    assert (await features.user(hasty)).interest_vector is None
    # At once, though the long memory does not have this impression: nothing records it here.
    assert (await features.user(reader)).interest_vector == pytest.approx(axis(1), abs=1e-6)

    await working.like(reader, liked)
    await working.settled("features")
    taste = (await features.user(reader)).interest_vector
    assert taste is not None
    assert taste[2] == pytest.approx(1, abs=1e-3)


async def test_impressions_reach_the_long_memory_once(backstage: Backstage) -> None:
    reader = fresh_id()
    post_ids = fresh_ids(3)
    impressions = backstage.stores.impressions()
    async with backstage.running("impressions"):
        await backstage.show(reader, post_ids, dwell_ms=5_000)
        await backstage.settled("impressions")
    seen = await impressions.seen(reader, 0, 100)
    assert {each.post_id for each in seen} == set(post_ids)
    assert all(each.count == 1 for each in seen)
    dwelt = await impressions.dwelt(reader, 4_000, 0, 100)
    assert {each.dwell_ms for each in dwelt} == {5_000}
