"""What every feature store does."""

import asyncio
from collections.abc import AsyncIterator

import numpy as np
import pytest
from redis.asyncio import Redis

from mesh.errors import Unavailable
from mesh.packing import DIMENSIONS, Vector
from stores.features.port import FeatureStore, PostFeatures, UserFeatures
from stores.features.redis import RedisFeatureStore
from stores.redis_client import open_redis
from tests.fixtures.feast import PushedAtOnce, fallbacks, feast_client
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.fixtures.stack import Stack
from tests.fixtures.valkey import free_port


@pytest.fixture(params=["redis", "cluster", pytest.param("feast", marks=pytest.mark.stack)])
async def features(
    request: pytest.FixtureRequest, empty_redis: Redis, empty_cluster: Redis, stack: Stack
) -> AsyncIterator[FeatureStore]:
    if request.param != "feast":
        yield RedisFeatureStore(empty_redis if request.param == "redis" else empty_cluster)
        return
    before = fallbacks()
    async with feast_client(await stack.url("feast")) as feast:
        yield PushedAtOnce(empty_redis, feast)
    # Else the cache answered in Feast's place.
    assert fallbacks() == before


def unit_vector(seed: int) -> Vector:
    vector = np.random.default_rng(seed).standard_normal(DIMENSIONS).astype(np.float32)
    return vector / np.float32(np.linalg.norm(vector))


async def one(features: FeatureStore, post_id: int) -> PostFeatures:
    [found] = await features.posts([post_id])
    assert found is not None
    return found


async def viewers(features: FeatureStore, post_id: int) -> int:
    return (await one(features, post_id)).viewer_count


async def test_an_unknown_user_has_the_defaults(features: FeatureStore) -> None:
    assert await features.user(fresh_id()) == UserFeatures()
    assert await features.affinities(fresh_id(), [1, 2]) == [0.0, 0.0]
    assert await features.affinities(fresh_id(), []) == []


async def test_user_stats_are_written_one_by_one_or_together(features: FeatureStore) -> None:
    user = fresh_id()
    await features.put_user_stats(user)
    assert await features.user(user) == UserFeatures()
    await features.put_user_stats(user, follower_count=12)
    await features.put_user_stats(user, avg_engagement_rate=0.25)
    assert await features.user(user) == UserFeatures(12, 0.25)
    await features.put_user_stats(user, follower_count=0, avg_engagement_rate=0.0)
    assert await features.user(user) == UserFeatures()


async def test_taste_is_replaced_as_a_whole(features: FeatureStore) -> None:
    user, taste = fresh_id(), unit_vector(1)
    await features.put_user_stats(user, follower_count=3)
    await features.put_taste(user, taste, {10: 0.5, 2**62: 0.125})
    known = await features.user(user)
    assert known.interest_vector is not None
    assert known.interest_vector.dtype == np.float32
    np.testing.assert_array_equal(known.interest_vector, taste)
    assert known.follower_count == 3
    assert await features.affinities(user, [2**62, 7, 10]) == [0.125, 0.0, 0.5]

    await features.put_taste(user, None, {7: 1.0})
    assert await features.user(user) == UserFeatures(follower_count=3)
    assert await features.affinities(user, [2**62, 7, 10]) == [0.0, 1.0, 0.0]
    await features.put_taste(user, None, {})
    assert await features.affinities(user, [7]) == [0.0]


async def test_posts_answer_in_the_order_asked_and_none_for_unknown_ones(
    features: FeatureStore,
) -> None:
    first, second, unknown = fresh_ids(3)
    await features.put_post(first, author_id=1, has_media=False)
    await features.put_post(second, author_id=2**62, has_media=True)
    assert await features.posts([second, unknown, first]) == [
        PostFeatures(2**62, 0, True, 0, None),
        None,
        PostFeatures(1, 0, False, 0, None),
    ]
    assert await features.posts([]) == []


async def test_an_embedding_is_kept_when_the_post_is_written_again_without(
    features: FeatureStore,
) -> None:
    post, embedding = fresh_id(), unit_vector(2)
    await features.put_post(post, author_id=1, has_media=False, embedding=embedding)
    await features.put_post(post, author_id=1, has_media=False)
    found = (await one(features, post)).embedding
    assert found is not None
    np.testing.assert_array_equal(found, embedding)


async def test_counters_survive_a_rewrite_of_the_post(features: FeatureStore) -> None:
    post = fresh_id()
    await features.put_post(post, author_id=1, has_media=False)
    await features.put_like_counts({post: 5})
    await features.add_viewers([(post, 1), (post, 2)])
    await features.put_post(post, author_id=1, has_media=True)
    assert await features.posts([post]) == [PostFeatures(1, 5, True, 2, None)]


async def test_like_counts_of_unknown_posts_are_passed_over(features: FeatureStore) -> None:
    known, unknown = fresh_ids(2)
    await features.put_post(known, author_id=1, has_media=False)
    await features.put_like_counts({unknown: 3, known: 4})
    await features.put_like_counts({})
    assert (await one(features, known)).like_count == 4
    assert await features.posts([unknown]) == [None]


async def test_a_viewer_counts_once_a_post(features: FeatureStore) -> None:
    first, second = fresh_ids(2)
    for post in (first, second):
        await features.put_post(post, author_id=1, has_media=False)
    for _ in range(3):
        await features.add_viewers([(first, 1), (first, 2), (second, 1), (first, 1)])
    assert await viewers(features, first) == 2
    assert await viewers(features, second) == 1


async def test_viewers_of_unknown_posts_are_none_even_later(features: FeatureStore) -> None:
    post = fresh_id()
    await features.add_viewers([(post, 1)])
    await features.add_viewers([])
    assert await features.posts([post]) == [None]
    await features.put_post(post, author_id=1, has_media=False)
    assert await viewers(features, post) == 0


async def test_many_viewers_are_counted_within_two_percent(features: FeatureStore) -> None:
    post = fresh_id()
    await features.put_post(post, author_id=1, has_media=False)
    await features.add_viewers([(post, user) for user in range(20_000)])
    assert await viewers(features, post) == pytest.approx(20_000, rel=0.02)


async def test_a_deleted_post_is_forgotten_everywhere(features: FeatureStore) -> None:
    post, other = fresh_ids(2)
    for each in (post, other):
        await features.put_post(each, author_id=1, has_media=False)
    await features.add_viewers([(post, 1)])
    await features.put_popular({post: 2.0, other: 1.0})
    await features.put_unproven([post, other])
    for _ in range(2):
        await features.delete_post(post)
    assert await features.posts([post]) == [None]
    assert await features.popular(10) == [(other, 1.0)]
    assert await features.unproven(10) == [other]
    await features.put_post(post, author_id=1, has_media=False)
    assert await viewers(features, post) == 0


async def test_popular_posts_come_hottest_first(features: FeatureStore) -> None:
    assert await features.popular(10) == []
    await features.put_popular({1: 0.5, 2: 3.0, 3: 1.5})
    await features.put_popular({1: 2.0})
    await features.put_popular({})
    assert await features.popular(2) == [(2, 3.0), (1, 2.0)]
    assert await features.popular(0) == []


async def test_the_1000_hottest_are_kept(features: FeatureStore) -> None:
    await features.put_popular({post: float(post) for post in range(1, 1_201)})
    kept = await features.popular(5_000)
    assert kept == [(post, float(post)) for post in range(1_200, 200, -1)]


async def test_unproven_posts_come_newest_first_until_they_are_dropped(
    features: FeatureStore,
) -> None:
    assert await features.unproven(5) == []
    first, second, third = fresh_ids(3)
    await features.put_unproven([second, first])
    await features.put_unproven([third, second])
    await features.put_unproven([])
    assert await features.unproven(2) == [third, second]
    await features.drop_unproven([third, 999])
    await features.drop_unproven([])
    assert await features.unproven(5) == [second, first]
    assert await features.unproven(0) == []


async def test_the_5000_newest_unproven_are_kept(features: FeatureStore) -> None:
    await features.put_unproven(range(1, 6_001))
    assert await features.unproven(10_000) == list(range(6_000, 1_000, -1))


async def test_features_of_a_page_of_candidates_are_read_at_once(features: FeatureStore) -> None:
    posts = fresh_ids(150)
    embedding = unit_vector(3)
    await asyncio.gather(
        *(
            features.put_post(post, author_id=1, has_media=False, embedding=embedding)
            for post in posts
        )
    )
    found = await features.posts(posts)
    assert all(post is not None and post.embedding is not None for post in found)


async def test_redis_features_expire_unless_they_are_written(empty_redis: Redis) -> None:
    features = RedisFeatureStore(empty_redis)
    await features.put_post(1, author_id=2, has_media=False)
    await features.add_viewers([(1, 3)])
    await features.put_user_stats(2, follower_count=1)
    await features.put_taste(2, None, {4: 1.0})
    day_s = 86_400
    lifetimes = {
        "feature:post:{1}": 35 * day_s,
        "viewers:{1}": 35 * day_s,
        "feature:user:{2}": 60 * day_s,
        "feature:affinity:{2}": 60 * day_s,
    }
    for key, lifetime_s in lifetimes.items():
        assert lifetime_s - 60 < await empty_redis.ttl(key) <= lifetime_s
    await empty_redis.expire("feature:post:{1}", 100)
    await features.put_like_counts({1: 1})
    assert await empty_redis.ttl("feature:post:{1}") > 100


async def test_redis_that_is_away_is_unavailable() -> None:
    async with open_redis(f"redis://127.0.0.1:{free_port()}/0") as away:
        features = RedisFeatureStore(away)
        for call in (
            features.user(1),
            features.posts([1]),
            features.affinities(1, [2]),
            features.put_user_stats(1, follower_count=1),
            features.put_taste(1, None, {}),
            features.put_post(1, author_id=1, has_media=False),
            features.put_like_counts({1: 1}),
            features.add_viewers([(1, 1)]),
            features.delete_post(1),
            features.put_popular({1: 1.0}),
            features.popular(1),
            features.put_unproven([1]),
            features.drop_unproven([1]),
            features.unproven(1),
        ):
            with pytest.raises(Unavailable):
                await call
