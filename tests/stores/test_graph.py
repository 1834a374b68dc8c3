"""What every adapter of the graph port does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress

import pytest
from feed.v1 import events_pb2

from mesh.errors import PermissionDenied, ResourceExhausted, Unavailable
from stores.events.port import Event, Topic
from stores.graph.dgraph import DgraphGraphStore
from stores.graph.port import GraphStore, Neighborhood, Relation
from stores.graph.sql import SqlGraphStore
from stores.outbox.sql import SqlOutbox
from stores.sql.database import Database
from tests.fixtures.dgraph import dgraph_url
from tests.fixtures.sql import announced, fresh_id, fresh_ids

LIMIT = 100


@pytest.fixture(params=["sql", "dgraph"])
async def graph(request: pytest.FixtureRequest, database: Database) -> AsyncIterator[GraphStore]:
    """Every adapter that is reachable, by its name."""
    if request.param == "sql":
        yield SqlGraphStore(database)
        return
    store = DgraphGraphStore(dgraph_url(), SqlOutbox(database))
    yield store
    await store.close()


def event(user_id: int) -> Event:
    return Event(Topic.GRAPH, user_id, events_pb2.GraphEvent(user_id=user_id))


async def follow(graph: GraphStore, user_id: int, author_id: int) -> bool:
    return await graph.follow(user_id, author_id, LIMIT, event(user_id))


async def test_following_is_known_to_both_sides_and_announced_once(
    graph: GraphStore, database: Database
) -> None:
    reader, author = fresh_ids(2)
    assert await follow(graph, reader, author)
    assert not await follow(graph, reader, author)
    assert await graph.neighborhood(reader) == Neighborhood([author], [], [])
    assert await graph.relation(reader, author) == Relation(True, False, False)
    assert await graph.relation(author, reader) == Relation(False, False, False)
    assert await graph.follower_counts([author, reader]) == {author: 1, reader: 0}
    assert await graph.following_count(reader) == 1
    assert len(await announced(database, reader)) == 1


async def test_unfollowing_ends_it(graph: GraphStore, database: Database) -> None:
    reader, author = fresh_ids(2)
    await follow(graph, reader, author)
    assert await graph.unfollow(reader, author, event(reader))
    assert not await graph.unfollow(reader, author, event(reader))
    assert await graph.neighborhood(reader) == Neighborhood([], [], [])
    assert await graph.following_count(reader) == 0
    assert len(await announced(database, reader)) == 2


async def test_blocking_ends_following_in_both_directions(
    graph: GraphStore, database: Database
) -> None:
    one, other, third = fresh_ids(3)
    for follower, author in ((one, other), (other, one), (one, third)):
        await follow(graph, follower, author)
    assert await graph.block(one, other, event(one))
    assert not await graph.block(one, other, event(one))
    assert await graph.neighborhood(one) == Neighborhood([third], [], [other])
    assert await graph.neighborhood(other) == Neighborhood([], [], [one])
    assert await graph.relation(one, other) == Relation(False, True, False)
    assert await graph.relation(other, one) == Relation(False, False, True)
    assert len(await announced(database, one)) == 3


async def test_neither_side_of_a_block_can_follow_until_it_ends(graph: GraphStore) -> None:
    one, other = fresh_ids(2)
    await graph.block(one, other, event(one))
    for follower, author in ((one, other), (other, one)):
        with pytest.raises(PermissionDenied):
            await follow(graph, follower, author)
    assert (await graph.neighborhood(other)).following == []
    assert await graph.unblock(one, other, event(one))
    assert not await graph.unblock(one, other, event(one))
    assert await follow(graph, other, one)


async def test_a_mutual_block_is_one_neighbor(graph: GraphStore) -> None:
    one, other = fresh_ids(2)
    await graph.block(one, other, event(one))
    await graph.block(other, one, event(other))
    assert (await graph.neighborhood(one)).blocked == [other]
    assert await graph.relation(one, other) == Relation(False, True, True)


async def test_following_stops_at_the_limit(graph: GraphStore, database: Database) -> None:
    reader, authors = fresh_id(), fresh_ids(3)
    for author in authors[:2]:
        await graph.follow(reader, author, 2, event(reader))
    with pytest.raises(ResourceExhausted):
        await graph.follow(reader, authors[2], 2, event(reader))
    assert not await graph.follow(reader, authors[0], 2, event(reader))
    assert await graph.following_count(reader) == 2
    assert len(await announced(database, reader)) == 2


async def test_blocks_and_pulled_authors_are_added_in_bulk_and_read_in_pages(
    graph: GraphStore,
) -> None:
    people = fresh_ids(5)
    edges = sorted((user, other) for user in people for other in people if user != other)
    await graph.block_many(edges)
    await graph.block_many(edges[:3])
    after, found = (people[0] - 1, 0), []
    while page := await graph.blocks_page(after, 7):
        found += page
        after = page[-1]
    assert found == edges
    assert (await graph.relation(people[0], people[1])).blocking
    for author in people:
        await graph.mark_pulled(author)
    assert await graph.pulled_page(people[0] - 1, 2) == people[:2]
    assert await graph.pulled_page(people[1], 10) == people[2:]


async def test_nobody_follows_under_a_block_that_came_at_the_same_moment(
    graph: GraphStore,
) -> None:
    async def block(author: int, reader: int) -> bool:
        # On a busy machine a database's deadline may pass: then nothing was promised.
        while True:
            with suppress(Unavailable):
                return await graph.block(author, reader, event(author))

    pairs = [fresh_ids(2) for _ in range(40)]
    follows = asyncio.gather(
        *(follow(graph, reader, author) for reader, author in pairs), return_exceptions=True
    )
    await asyncio.gather(*(block(author, reader) for reader, author in pairs))
    await follows
    for reader, author in pairs:
        assert await graph.relation(reader, author) == Relation(False, False, True)


async def test_concurrent_follows_do_not_pass_the_limit(graph: GraphStore) -> None:
    reader = fresh_id()
    follows = [graph.follow(reader, author, 5, event(reader)) for author in fresh_ids(12)]
    outcomes = await asyncio.gather(*follows, return_exceptions=True)
    assert outcomes.count(True) == 5
    assert await graph.following_count(reader) == 5


async def test_bulk_follows_may_be_repeated_and_announce_nothing(
    graph: GraphStore, database: Database
) -> None:
    reader, authors = fresh_id(), fresh_ids(7500)
    edges = [(reader, author) for author in authors]
    for _ in range(2):
        await graph.follow_many([*edges, edges[0]])
    assert sorted((await graph.neighborhood(reader)).following) == authors
    assert set((await graph.follower_counts(authors)).values()) == {1}
    assert await announced(database, reader) == []


async def test_followers_come_in_pages_in_the_order_of_ids(graph: GraphStore) -> None:
    author, followers = fresh_id(), fresh_ids(5)
    await graph.follow_many([(follower, author) for follower in reversed(followers)])
    assert await graph.followers_page(author, 0, 2) == followers[:2]
    assert await graph.followers_page(author, followers[1], 10) == followers[2:]
    assert await graph.followers_page(author, followers[-1], 10) == []


async def test_edges_come_in_pages_in_order(graph: GraphStore) -> None:
    one, two = fresh_ids(2)
    authors = fresh_ids(2)
    edges = [(one, authors[0]), (one, authors[1]), (two, authors[0])]
    await graph.follow_many(edges[::-1])
    assert await graph.follows_page((one, 0), 2) == edges[:2]
    assert (await graph.follows_page(edges[1], 10))[:1] == edges[2:]


async def test_a_pulled_author_stays_pulled(graph: GraphStore) -> None:
    reader, celebrity, author = fresh_ids(3)
    await graph.follow_many([(reader, celebrity), (reader, author)])
    assert not await graph.is_pulled(celebrity)
    for _ in range(2):
        await graph.mark_pulled(celebrity)
    assert await graph.is_pulled(celebrity)
    neighborhood = await graph.neighborhood(reader)
    assert sorted(neighborhood.following) == [celebrity, author]
    assert neighborhood.pulled == [celebrity]
    await graph.unfollow(reader, celebrity, event(reader))
    assert await graph.is_pulled(celebrity)
    assert (await graph.neighborhood(reader)).pulled == []


async def test_a_follow_and_a_block_at_one_moment_do_not_both_hold(graph: GraphStore) -> None:
    for _ in range(10):
        one, other = fresh_ids(2)
        outcomes = await asyncio.gather(
            follow(graph, one, other), graph.block(other, one, event(other)),
            follow(graph, other, one), graph.block(one, other, event(one)),
            return_exceptions=True,
        )  # fmt: skip
        assert outcomes[1] is True
        assert outcomes[3] is True
        for user in (one, other):
            assert (await graph.neighborhood(user)).following == []
            assert await graph.following_count(user) == 0
        assert await graph.follower_counts([one, other]) == {one: 0, other: 0}


async def test_many_follow_one_author_at_one_moment(graph: GraphStore) -> None:
    author, readers = fresh_id(), fresh_ids(20)
    assert await asyncio.gather(*(follow(graph, each, author) for each in readers)) == [True] * 20
    assert await graph.follower_counts([author]) == {author: 20}
    assert await graph.followers_page(author, 0, 100) == readers
    await asyncio.gather(*(graph.unfollow(each, author, event(each)) for each in readers[:5]))
    assert await graph.follower_counts([author]) == {author: 15}


async def test_all_edges_are_found_page_by_page(graph: GraphStore) -> None:
    readers, authors = fresh_ids(7), fresh_ids(5)
    edges = [(reader, author) for reader in readers for author in authors]
    await graph.follow_many(edges)
    await graph.unfollow(readers[2], authors[0], event(readers[2]))
    left = [edge for edge in edges if edge != (readers[2], authors[0])]
    for limit in (1, 3, 5, 100):
        found, after = list[tuple[int, int]](), (readers[0], 0)
        while page := await graph.follows_page(after, limit):
            assert len(page) <= limit
            # Other tests may follow at the same time.
            found += [edge for edge in page if edge[0] in readers]
            after = page[-1]
        assert found == left
