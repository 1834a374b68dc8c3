"""feed.v1.HydratorService over gRPC, on a real database."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest
from feed.v1 import common_pb2 as c
from feed.v1 import events_pb2
from feed.v1 import hydrator_pb2 as h
from feed.v1.hydrator_pb2_grpc import HydratorServiceStub

from hydrator_svc.service import server
from mesh.channels import call
from mesh.errors import InvalidArgument, Unavailable
from stores.connect import Connections
from stores.events.port import Event, Topic
from stores.posts.port import StoredMedia, StoredPost
from stores.users.port import Credentials, User
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.services.conftest import Serve

if TYPE_CHECKING:
    from feed.v1.hydrator_pb2_grpc import HydratorServiceAsyncStub

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


@pytest.fixture(scope="session")
async def stub(serve: Serve) -> AsyncIterator["HydratorServiceAsyncStub"]:
    async with serve(server) as channel:
        yield HydratorServiceStub(channel)


async def published(stores: Connections, authors: Sequence[int], count: int) -> list[StoredPost]:
    """Posts by authors in turn; the authors are made where missing."""
    users = [User(author, f"u{author}", f"User {author}", NOON) for author in authors]
    await stores.users().create_many([Credentials(user, None) for user in users])
    posts = [
        StoredPost(fresh_id(), authors[n % len(authors)], f"text {n}", ("tag",), (), NOON)
        for n in range(count)
    ]
    await stores.posts().create_many(posts)
    return posts


async def delete(stores: Connections, post: StoredPost) -> None:
    event = Event(Topic.POSTS, post.author_id, events_pb2.PostEvent(post_id=post.post_id))
    await stores.posts().delete(post.post_id, post.author_id, event)


def feed_of(posts: Sequence[StoredPost], limit: int = 0) -> h.HydrateFeedRequest:
    """A feed whose scores fall in the order of posts."""
    return h.HydrateFeedRequest(
        reader=c.Reader(user_id=fresh_id()),
        candidates=c.Candidates(
            post_ids=[post.post_id for post in posts],
            author_ids=[post.author_id for post in posts],
            sources=[c.CANDIDATE_SOURCE_SOCIAL] * len(posts),
            retrieval_scores=[1.0] * len(posts),
        ),
        scores=[1 - rank / 100 for rank in range(len(posts))],
        limit=limit,
    )


def ids(posts: Sequence[c.Post]) -> list[int]:
    return [post.post_id for post in posts]


async def test_a_post_comes_with_all_that_is_shown_of_it(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    reader, author = fresh_ids(2)
    (plain,) = await published(stores, [author], 1)
    media = StoredMedia("ab/picture.webp", "image/webp", 640, 480)
    post = replace(plain, post_id=fresh_id(), media=(media,), tags=("tea", "cups"))
    await stores.posts().create_many([post])
    await stores.posts().like_many([(reader, post.post_id, NOON)])
    request = h.HydratePostsRequest(reader_id=reader, post_ids=[post.post_id, plain.post_id])
    answer = await call(stub.HydratePosts, request, timeout=5)
    liked, other = answer.posts
    assert (liked.post_id, liked.text, list(liked.tags)) == (
        post.post_id,
        "text 0",
        ["tea", "cups"],
    )
    assert liked.author == c.Author(
        user_id=author, username=f"u{author}", display_name=f"User {author}"
    )
    assert liked.media[0].url == stores.media().url("ab/picture.webp")
    assert (liked.media[0].content_type, liked.media[0].width, liked.media[0].height) == (
        "image/webp",
        640,
        480,
    )
    assert (liked.like_count, liked.liked) == (1, True)
    assert (other.like_count, other.liked) == (0, False)
    assert liked.created_at.ToDatetime(UTC) == NOON
    assert answer.consumed == 2


async def test_nobody_in_particular_likes_nothing(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    (post,) = await published(stores, [fresh_id()], 1)
    await stores.posts().like_many([(fresh_id(), post.post_id, NOON)])
    answer = await call(
        stub.HydratePosts, h.HydratePostsRequest(post_ids=[post.post_id]), timeout=5
    )
    assert (answer.posts[0].like_count, answer.posts[0].liked) == (1, False)


async def test_a_feed_is_ordered_as_a_whole_and_shown_a_page_of(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    posts = await published(stores, fresh_ids(30), 30)
    answer = await call(stub.HydrateFeed, feed_of(posts), timeout=5)
    assert list(answer.order) == list(range(30))
    assert list(answer.placements) == [h.PLACEMENT_BY_SCORE] * 30
    assert list(answer.propensities) == [1.0] * 30
    assert (list(answer.pool_sizes), list(answer.pool)) == ([0] * 30, [])
    assert ids(answer.posts) == [post.post_id for post in posts[:20]]
    assert answer.consumed == 20


async def test_an_author_is_spread_out(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    one = await published(stores, [fresh_id()], 3)
    others = await published(stores, fresh_ids(3), 3)
    answer = await call(stub.HydrateFeed, feed_of([*one, *others], 4), timeout=5)
    assert list(answer.order) == [0, 3, 1, 4, 2, 5]
    assert answer.placements[2] == h.PLACEMENT_AUTHOR_SPREAD


async def test_chance_has_a_say_and_tells_how_much(serve: Serve, stores: Connections) -> None:
    posts = await published(stores, fresh_ids(30), 30)
    async with serve(server, epsilon=0.5, epsilon_pool=4) as channel:
        answer = await call(HydratorServiceStub(channel).HydrateFeed, feed_of(posts), timeout=5)
    assert sorted(answer.order) == list(range(30))
    assert set(answer.placements) == {h.PLACEMENT_BY_SCORE, h.PLACEMENT_EXPLORATION}
    pools = iter(answer.pool)
    for index, placement, propensity, size in zip(
        answer.order, answer.placements, answer.propensities, answer.pool_sizes, strict=True
    ):
        pool = [next(pools) for _ in range(size)]
        assert index in pool
        assert (placement == h.PLACEMENT_EXPLORATION) == (index != pool[0])
        assert propensity == pytest.approx(0.5 / size + (0.5 if index == pool[0] else 0))
    assert next(pools, None) is None


async def test_deleted_posts_are_replaced_by_the_next(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    posts = await published(stores, fresh_ids(8), 8)
    for gone in (posts[1], posts[3], posts[4]):
        await delete(stores, gone)
    answer = await call(stub.HydrateFeed, feed_of(posts, 3), timeout=5)
    assert ids(answer.posts) == [posts[n].post_id for n in (0, 2, 5)]
    assert answer.consumed == 6
    assert len(answer.order) == 8


async def test_a_page_is_short_only_when_the_feed_is(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    posts = await published(stores, fresh_ids(4), 4)
    await delete(stores, posts[2])
    answer = await call(stub.HydrateFeed, feed_of(posts, 4), timeout=5)
    assert ids(answer.posts) == [posts[n].post_id for n in (0, 1, 3)]
    assert answer.consumed == 4


async def test_a_post_whose_author_is_gone_is_gone_too(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    (kept,) = await published(stores, [fresh_id()], 1)
    orphan = replace(kept, post_id=fresh_id(), author_id=fresh_id())
    await stores.posts().create_many([orphan])
    request = h.HydratePostsRequest(post_ids=[orphan.post_id, kept.post_id], limit=1)
    answer = await call(stub.HydratePosts, request, timeout=5)
    assert ids(answer.posts) == [kept.post_id]
    assert answer.consumed == 2


async def test_authors_are_right_even_when_the_candidates_name_others(
    stub: "HydratorServiceAsyncStub", stores: Connections
) -> None:
    posts = await published(stores, fresh_ids(2), 2)
    request = feed_of(posts)
    request.candidates.author_ids[0] = 0
    answer = await call(stub.HydrateFeed, request, timeout=5)
    assert [post.author.user_id for post in answer.posts] == [post.author_id for post in posts]


async def test_an_empty_feed_is_an_empty_page(stub: "HydratorServiceAsyncStub") -> None:
    answer = await call(stub.HydrateFeed, feed_of([]), timeout=5)
    assert (list(answer.order), list(answer.posts), answer.consumed) == ([], [], 0)
    nothing = await call(stub.HydratePosts, h.HydratePostsRequest(), timeout=5)
    assert (list(nothing.posts), nothing.consumed) == ([], 0)


async def test_without_the_source_of_truth_there_is_no_page(
    serve: Serve, away: dict[str, str]
) -> None:
    async with serve(server, sql_url=away["sql_url"]) as channel:
        stub = HydratorServiceStub(channel)
        with pytest.raises(Unavailable):
            await call(stub.HydratePosts, h.HydratePostsRequest(post_ids=[1]), timeout=5)


async def test_bad_input_is_refused_by_field(stub: "HydratorServiceAsyncStub") -> None:
    reader = c.Reader(user_id=1)
    for field, spoil in {
        "reader.user_id": h.HydrateFeedRequest(),
        "candidates.author_ids": h.HydrateFeedRequest(
            reader=reader, candidates=c.Candidates(post_ids=[1])
        ),
        "scores": h.HydrateFeedRequest(reader=reader, scores=[1.0]),
        "limit": h.HydrateFeedRequest(reader=reader, limit=101),
    }.items():
        with pytest.raises(InvalidArgument) as error:
            await call(stub.HydrateFeed, spoil, timeout=5)
        assert field in error.value.fields
    with pytest.raises(InvalidArgument) as error:
        await call(stub.HydratePosts, h.HydratePostsRequest(limit=101), timeout=5)
    assert error.value.fields == {"limit": "101 is not in 1..100"}
