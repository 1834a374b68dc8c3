"""feed.v1.FilterService over gRPC, on real stores."""

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import pytest
from feed.v1 import common_pb2 as c
from feed.v1 import filter_pb2 as f
from feed.v1.filter_pb2_grpc import FilterServiceStub

from filter_svc.service import server
from mesh.channels import call
from mesh.errors import InvalidArgument
from mesh.ids import now_ms
from stores.connect import Connections
from stores.impressions.port import Impression
from tests.fixtures.sql import fresh_id
from tests.services.conftest import Serve

if TYPE_CHECKING:
    from feed.v1.filter_pb2_grpc import FilterServiceAsyncStub

HOUR_MS = 3_600_000


@pytest.fixture(scope="session")
async def stub(serve: Serve) -> AsyncIterator["FilterServiceAsyncStub"]:
    async with serve(server) as channel:
        yield FilterServiceStub(channel)


def impression(user_id: int, post_id: int, hours_ago: float) -> Impression:
    seen_at_ms = now_ms() - int(hours_ago * HOUR_MS)
    return Impression(str(fresh_id()), user_id, post_id, fresh_id(), seen_at_ms)


def rows(seen: f.SeenPosts) -> dict[int, int]:
    """Count by post."""
    return dict(zip(seen.post_ids, seen.counts, strict=True))


async def test_what_was_seen_comes_from_both_memories(
    stub: "FilterServiceAsyncStub", stores: Connections
) -> None:
    reader, old, both, new = (fresh_id() for _ in range(4))
    await stores.impressions().record(
        [impression(reader, old, 30), *(impression(reader, both, 2) for _ in range(3))]
    )
    moment = now_ms()
    await stores.recent_seen().record(reader, [both, new], moment)
    answer = await call(stub.ListSeen, f.ListSeenRequest(reader_id=reader), timeout=5)
    assert rows(answer.seen) == {both: 3, new: 1}
    assert set(answer.seen.last_seen_ms) == {moment}
    assert not answer.degraded


async def test_somebody_who_saw_nothing_has_an_empty_list(stub: "FilterServiceAsyncStub") -> None:
    answer = await call(stub.ListSeen, f.ListSeenRequest(reader_id=fresh_id()), timeout=5)
    assert rows(answer.seen) == {}


async def test_without_redis_the_long_memory_answers_alone(
    serve: Serve, stores: Connections, away: dict[str, str]
) -> None:
    reader, post = fresh_id(), fresh_id()
    await stores.impressions().record([impression(reader, post, 1)])
    async with serve(server, redis_url=away["redis_url"]) as channel:
        request = f.ListSeenRequest(reader_id=reader)
        answer = await call(FilterServiceStub(channel).ListSeen, request, timeout=5)
    assert rows(answer.seen) == {post: 1}
    assert answer.degraded == ["recent_seen"]


async def test_without_sql_the_short_memory_answers_alone(
    serve: Serve, stores: Connections, away: dict[str, str]
) -> None:
    reader, post = fresh_id(), fresh_id()
    await stores.recent_seen().record(reader, [post], now_ms())
    async with serve(server, sql_url=away["sql_url"]) as channel:
        request = f.ListSeenRequest(reader_id=reader)
        answer = await call(FilterServiceStub(channel).ListSeen, request, timeout=5)
    assert rows(answer.seen) == {post: 1}
    assert answer.degraded == ["impressions"]


async def test_every_candidate_gets_a_verdict_and_a_penalty(
    stub: "FilterServiceAsyncStub",
) -> None:
    request = f.FilterCandidatesRequest(
        reader=c.Reader(user_id=1, following_ids=[10], blocked_ids=[66]),
        candidates=c.Candidates(
            post_ids=[1, 2, 3, 4, 5],
            author_ids=[10, 1, 66, 10, 0],
            sources=[c.CANDIDATE_SOURCE_SOCIAL] * 5,
            retrieval_scores=[1.0] * 5,
        ),
        seen=f.SeenPosts(post_ids=[4], counts=[1], last_seen_ms=[now_ms()]),
        page_size=2,
    )
    answer = await call(stub.FilterCandidates, request, timeout=5)
    assert list(answer.verdicts) == [
        f.VERDICT_KEPT,
        f.VERDICT_OWN,
        f.VERDICT_BLOCKED,
        f.VERDICT_PENALIZED,
        f.VERDICT_DELETED,
    ]
    assert list(answer.penalties) == pytest.approx([0, 0, 0, 0.5, 0], abs=0.01)


async def test_at_most_150_are_kept_unless_said_otherwise(stub: "FilterServiceAsyncStub") -> None:
    count = 200
    request = f.FilterCandidatesRequest(
        reader=c.Reader(user_id=1, following_ids=[10]),
        candidates=c.Candidates(
            post_ids=range(1, count + 1),
            author_ids=[10] * count,
            sources=[c.CANDIDATE_SOURCE_SOCIAL] * count,
            retrieval_scores=[1.0] * count,
        ),
    )
    answer = await call(stub.FilterCandidates, request, timeout=5)
    assert list(answer.verdicts) == [f.VERDICT_KEPT] * 150 + [f.VERDICT_OVER_LIMIT] * 50
    request.max_kept = 3
    answer = await call(stub.FilterCandidates, request, timeout=5)
    assert list(answer.verdicts).count(f.VERDICT_KEPT) == 3


async def test_no_candidates_have_no_verdicts(stub: "FilterServiceAsyncStub") -> None:
    request = f.FilterCandidatesRequest(reader=c.Reader(user_id=1), page_size=20)
    assert not (await call(stub.FilterCandidates, request, timeout=5)).verdicts


async def test_a_request_without_a_reader_is_refused(stub: "FilterServiceAsyncStub") -> None:
    with pytest.raises(InvalidArgument) as listing:
        await call(stub.ListSeen, f.ListSeenRequest(), timeout=5)
    assert listing.value.fields == {"reader_id": "is missing"}
    with pytest.raises(InvalidArgument) as filtering:
        await call(stub.FilterCandidates, f.FilterCandidatesRequest(), timeout=5)
    assert filtering.value.fields == {"reader.user_id": "is missing"}


async def test_columns_of_unequal_length_are_refused(stub: "FilterServiceAsyncStub") -> None:
    request = f.FilterCandidatesRequest(
        reader=c.Reader(user_id=1), candidates=c.Candidates(post_ids=[1, 2], author_ids=[1])
    )
    with pytest.raises(InvalidArgument) as error:
        await call(stub.FilterCandidates, request, timeout=5)
    assert error.value.fields["candidates.author_ids"] == "has 1"
    request = f.FilterCandidatesRequest(reader=c.Reader(user_id=1), seen=f.SeenPosts(post_ids=[1]))
    with pytest.raises(InvalidArgument) as error:
        await call(stub.FilterCandidates, request, timeout=5)
    assert error.value.fields["seen.counts"] == "has 0"
