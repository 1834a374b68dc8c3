"""feed.v1.CandidateService over gRPC, on real stores."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np
import pytest
from feed.v1 import candidate_pb2 as g
from feed.v1 import common_pb2 as c
from feed.v1.candidate_pb2_grpc import CandidateServiceStub
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.registry import REGISTRY

from candidate_svc.recall import RecallProbe, Search
from candidate_svc.service import server
from mesh import telemetry
from mesh.channels import call
from mesh.errors import InvalidArgument
from mesh.ids import created_ms, first_id_at, now_ms
from mesh.packing import DIMENSIONS, Vector, pack
from mesh.settings import Settings
from stores.connect import Connections
from stores.mailboxes.port import Box
from stores.posts.port import StoredPost
from stores.vectors.edge import EdgeVectorStore
from stores.vectors.port import Hit, PostVector
from tests.eventually import eventually
from tests.fixtures.sql import fresh_id, fresh_ids
from tests.services.conftest import Serve

if TYPE_CHECKING:
    from feed.v1.candidate_pb2_grpc import CandidateServiceAsyncStub

DAY_MS = 86_400_000
NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)
SOCIAL, DISCOVERY = g.RETRIEVAL_STRATEGY_SOCIAL, g.RETRIEVAL_STRATEGY_DISCOVERY


@pytest.fixture(scope="session")
async def stub(serve: Serve) -> AsyncIterator["CandidateServiceAsyncStub"]:
    async with serve(server) as channel:
        yield CandidateServiceStub(channel)


@pytest.fixture
async def nothing_popular(stores: Connections) -> Connections:
    """Stores with neither popular nor unproven posts."""
    features = stores.features()
    for post_id, _ in await features.popular(2000):
        await features.delete_post(post_id)
    await features.drop_unproven(await features.unproven(10_000))
    return stores


def unit(seed: int) -> Vector:
    # The engine is shared: other modules' vectors begin from plain seeds.
    generator = np.random.default_rng([seed, 0xC0FFEE])
    return scaled(generator.standard_normal(DIMENSIONS).astype(np.float32))


def scaled(vector: Vector) -> Vector:
    """The vector at unit length."""
    return vector / np.linalg.norm(vector).astype(np.float32)


def near(vector: Vector, distance: float) -> Vector:
    """The vector turned a little, always in the same direction."""
    return scaled(vector + np.float32(distance) * unit(999))


async def published(stores: Connections, author_id: int, post_ids: Sequence[int]) -> list[int]:
    """Posts by one author, with the ids given; newest first."""
    posts = [StoredPost(post_id, author_id, "text", (), (), NOON) for post_id in post_ids]
    await stores.posts().create_many(posts)
    return sorted(post_ids, reverse=True)


async def boxed(stores: Connections, box: Box, post_ids: Sequence[int]) -> None:
    await stores.mailboxes().begin_build(box)
    await stores.mailboxes().finish_build(box, post_ids)


async def embedded(
    vectors: EdgeVectorStore, author_id: int, embedding: Vector, post_id: int = 0
) -> int:
    post_id = post_id or fresh_id()
    await vectors.upsert([PostVector(post_id, author_id, created_ms(post_id), (), embedding)])
    return post_id


async def ask(
    stub: "CandidateServiceAsyncStub",
    strategy: g.RetrievalStrategy.ValueType,
    reader: c.Reader,
    limit: int = 0,
) -> g.GetCandidatesResponse:
    request = g.GetCandidatesRequest(reader=reader, strategy=strategy, limit=limit)
    return await call(stub.GetCandidates, request, timeout=5)


def of_source(answer: g.GetCandidatesResponse, source: c.CandidateSource.ValueType) -> list[int]:
    columns = answer.candidates
    return [
        post_id
        for post_id, each in zip(columns.post_ids, columns.sources, strict=True)
        if each == source
    ]


# -- social ---------------------------------------------------------------------------------------


async def test_social_merges_the_mailbox_with_pulled_authors_newest_first(
    stub: "CandidateServiceAsyncStub", stores: Connections
) -> None:
    reader, friend, star = fresh_ids(3)
    ids = fresh_ids(6)
    await published(stores, friend, ids[::2])
    await published(stores, star, ids[1::2])
    await boxed(stores, Box("mailbox", reader), ids[::2])
    answer = await ask(
        stub,
        SOCIAL,
        c.Reader(user_id=reader, following_ids=[friend, star], pulled_author_ids=[star]),
        limit=5,
    )
    assert list(answer.candidates.post_ids) == ids[:0:-1]
    assert list(answer.candidates.author_ids) == [star, friend, star, friend, star]
    assert set(answer.candidates.sources) == {c.CANDIDATE_SOURCE_SOCIAL}
    scores = list(answer.candidates.retrieval_scores)
    assert scores == pytest.approx([1, 1 / 2, 1 / 3, 1 / 4, 1 / 5])
    assert not answer.degraded


async def test_a_missing_mailbox_is_built_from_the_posts_of_followed_authors(
    stub: "CandidateServiceAsyncStub", stores: Connections
) -> None:
    reader, friend = fresh_ids(2)
    ids = await published(stores, friend, fresh_ids(3))
    answer = await ask(stub, SOCIAL, c.Reader(user_id=reader, following_ids=[friend]))
    assert list(answer.candidates.post_ids) == ids
    assert (await stores.mailboxes().newest([Box("mailbox", reader)], 10)) == [ids]


async def test_a_deleted_post_in_a_mailbox_has_author_0(
    stub: "CandidateServiceAsyncStub", stores: Connections
) -> None:
    reader, gone = fresh_ids(2)
    await boxed(stores, Box("mailbox", reader), [gone])
    answer = await ask(stub, SOCIAL, c.Reader(user_id=reader))
    assert list(answer.candidates.post_ids) == [gone]
    assert list(answer.candidates.author_ids) == [0]


async def test_somebody_who_follows_nobody_has_no_social_candidates(
    stub: "CandidateServiceAsyncStub",
) -> None:
    answer = await ask(stub, SOCIAL, c.Reader(user_id=fresh_id()))
    assert not answer.candidates.post_ids
    assert not answer.degraded


async def test_without_mailboxes_the_source_of_truth_gives_the_newest(
    serve: Serve, stores: Connections, away: dict[str, str]
) -> None:
    one, two = fresh_ids(2)
    ids = fresh_ids(4)
    await published(stores, one, ids[:2])
    await published(stores, two, ids[2:])
    reader = c.Reader(user_id=fresh_id(), following_ids=[one, two], pulled_author_ids=[two])
    async with serve(server, redis_url=away["redis_url"]) as channel:
        answer = await ask(CandidateServiceStub(channel), SOCIAL, reader, limit=3)
    assert list(answer.candidates.post_ids) == ids[:0:-1]
    assert list(answer.candidates.author_ids) == [two, two, one]
    assert answer.degraded == ["mailboxes"]


async def test_without_the_source_of_truth_there_are_no_social_candidates(
    serve: Serve, stores: Connections, away: dict[str, str]
) -> None:
    reader = fresh_id()
    await boxed(stores, Box("mailbox", reader), [fresh_id()])
    async with serve(server, sql_url=away["sql_url"]) as channel:
        answer = await ask(CandidateServiceStub(channel), SOCIAL, c.Reader(user_id=reader))
    assert not answer.candidates.post_ids
    assert answer.degraded == ["authors"]


# -- discovery ------------------------------------------------------------------------------------


@pytest.mark.usefixtures("nothing_popular")
async def test_discovery_finds_the_nearest_strangers_with_their_cosines(
    stub: "CandidateServiceAsyncStub", vectors: EdgeVectorStore
) -> None:
    taste, reader, friend, foe, stranger = unit(1), *fresh_ids(4)
    nearest = await embedded(vectors, stranger, near(taste, 0.1))
    further = await embedded(vectors, stranger, near(taste, 0.3))
    for excluded in (reader, friend, foe):
        await embedded(vectors, excluded, taste)
    await embedded(vectors, stranger, taste, first_id_at(now_ms() - 31 * DAY_MS))
    answer = await ask(
        stub,
        DISCOVERY,
        c.Reader(
            user_id=reader, interest_vector=pack(taste), following_ids=[friend], blocked_ids=[foe]
        ),
        limit=2,
    )
    assert list(answer.candidates.post_ids) == [nearest, further]
    assert list(answer.candidates.author_ids) == [stranger] * 2
    assert set(answer.candidates.sources) == {c.CANDIDATE_SOURCE_DISCOVERY}
    expected = [float(taste @ near(taste, distance)) for distance in (0.1, 0.3)]
    assert list(answer.candidates.retrieval_scores) == pytest.approx(expected, abs=1e-3)
    assert not answer.degraded


async def test_a_share_of_the_slots_goes_to_unproven_posts_of_strangers(
    stub: "CandidateServiceAsyncStub", nothing_popular: Connections, vectors: EdgeVectorStore
) -> None:
    stores, taste = nothing_popular, unit(2)
    reader, friend, stranger = fresh_ids(3)
    found = [await embedded(vectors, stranger, near(taste, n / 100)) for n in range(20)]
    of_friend = await published(stores, friend, fresh_ids(10))
    of_stranger = await published(stores, stranger, fresh_ids(10))
    old = await published(stores, stranger, [first_id_at(now_ms() - 40 * DAY_MS)])
    gone = fresh_id()
    unproven = [*of_friend, *of_stranger, *old, gone, found[0]]
    await stores.features().put_unproven(unproven)
    person = c.Reader(user_id=reader, interest_vector=pack(taste), following_ids=[friend])
    answer = await ask(stub, DISCOVERY, person, limit=20)
    explored = of_source(answer, c.CANDIDATE_SOURCE_EXPLORATION)
    assert len(explored) == 2
    assert set(explored) <= set(of_stranger)
    assert of_source(answer, c.CANDIDATE_SOURCE_DISCOVERY) == found[:18]
    draws = [
        frozenset(
            of_source(await ask(stub, DISCOVERY, person, limit=20), c.CANDIDATE_SOURCE_EXPLORATION)
        )
        for _ in range(20)
    ]
    assert len(set(draws)) > 1


async def test_a_reader_without_history_gets_popular_posts_of_strangers_and_unproven_ones(
    stub: "CandidateServiceAsyncStub", nothing_popular: Connections
) -> None:
    stores = nothing_popular
    reader, friend, foe, stranger = fresh_ids(4)
    good = await published(stores, stranger, fresh_ids(12))
    bad = [await published(stores, each, fresh_ids(1)) for each in (reader, friend, foe)]
    new = await published(stores, stranger, fresh_ids(3))
    hotness = {post_id: float(100 - rank) for rank, post_id in enumerate(good)}
    await stores.features().put_popular(hotness | {post_id: 999.0 for (post_id,) in bad})
    await stores.features().put_unproven(new)
    person = c.Reader(user_id=reader, following_ids=[friend], blocked_ids=[foe])
    answer = await ask(stub, DISCOVERY, person, limit=10)
    assert of_source(answer, c.CANDIDATE_SOURCE_POPULAR) == good[:9]
    (explored,) = of_source(answer, c.CANDIDATE_SOURCE_EXPLORATION)
    assert explored in new
    assert list(answer.candidates.author_ids) == [stranger] * 10
    assert answer.candidates.retrieval_scores[:2] == pytest.approx([1, 0.5])
    assert not answer.degraded


async def test_without_vectors_popular_posts_take_their_place(
    serve: Serve, nothing_popular: Connections, away: dict[str, str]
) -> None:
    stores = nothing_popular
    (post_id,) = await published(stores, fresh_id(), fresh_ids(1))
    await stores.features().put_popular({post_id: 1.0})
    reader = c.Reader(user_id=fresh_id(), interest_vector=pack(unit(3)))
    async with serve(server, vectors_url=away["vectors_url"]) as channel:
        answer = await ask(CandidateServiceStub(channel), DISCOVERY, reader)
    assert of_source(answer, c.CANDIDATE_SOURCE_POPULAR) == [post_id]
    assert answer.degraded == ["vectors"]


async def test_without_redis_there_is_discovery_alone(
    serve: Serve, away: dict[str, str], vectors: EdgeVectorStore
) -> None:
    taste = unit(4)
    post_id = await embedded(vectors, fresh_id(), taste)
    async with serve(server, redis_url=away["redis_url"]) as channel:
        stub = CandidateServiceStub(channel)
        tasteful = c.Reader(user_id=fresh_id(), interest_vector=pack(taste))
        answer = await ask(stub, DISCOVERY, tasteful, limit=1)
        assert list(answer.candidates.post_ids) == [post_id]
        assert answer.degraded == ["features"]
        answer = await ask(stub, DISCOVERY, c.Reader(user_id=fresh_id()))
        assert not answer.candidates.post_ids
        assert sorted(answer.degraded) == ["features", "popular"]


@pytest.mark.usefixtures("nothing_popular")
async def test_an_empty_world_gives_no_candidates(stub: "CandidateServiceAsyncStub") -> None:
    answer = await ask(stub, DISCOVERY, c.Reader(user_id=fresh_id()))
    assert not answer.candidates.post_ids
    assert not answer.degraded


async def test_7500_followed_authors_can_be_excluded(
    stub: "CandidateServiceAsyncStub", vectors: EdgeVectorStore
) -> None:
    taste = unit(5)
    post_id = await embedded(vectors, fresh_id(), taste)
    reader = c.Reader(
        user_id=fresh_id(), interest_vector=pack(taste), following_ids=fresh_ids(7500)
    )

    answer = await ask(stub, DISCOVERY, reader, limit=1)
    assert list(answer.candidates.post_ids) == [post_id]


# -- measuring recall -----------------------------------------------------------------------------


async def test_a_sampled_search_is_repeated_exactly_in_a_trace_of_its_own(
    serve: Serve, settings: Settings, vectors: EdgeVectorStore
) -> None:
    exporter, taste = InMemorySpanExporter(), unit(6)
    telemetry.setup(settings, SimpleSpanProcessor(exporter))
    await embedded(vectors, fresh_id(), taste)
    before = REGISTRY.get_sample_value("retrieval_recall_count") or 0
    reader = c.Reader(user_id=fresh_id(), interest_vector=pack(taste))
    async with serve(server, recall_sample=1.0) as channel:
        with telemetry.span("the reader's request") as root:
            request_trace = root.get_span_context().trace_id
            await ask(CandidateServiceStub(channel), DISCOVERY, reader, limit=1)
        await eventually(
            lambda: (REGISTRY.get_sample_value("retrieval_recall_count") or 0) == before + 1
        )
    spans = exporter.get_finished_spans()
    (measured,) = [span for span in spans if span.name == "measure recall"]
    assert measured.parent is None
    assert [link.context.trace_id for link in measured.links] == [request_trace]
    assert measured.resource.attributes["service.name"] == "candidate_svc"
    assert measured.attributes is not None
    assert measured.attributes["feed.retrieval.recall"] == 1.0
    (served,) = [
        span
        for span in spans
        if span.resource.attributes["service.name"] == "candidate_svc"
        and span.name == "feed.v1.CandidateService/GetCandidates"
    ]
    assert served.attributes is not None
    assert served.attributes["feed.candidates.out.discovery"] == 1


class StuckVectors(EdgeVectorStore):
    """Never answers; tells when it was asked, and when the asker gave up."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.given_up = asyncio.Event()

    async def search(self, *_: object, **__: object) -> list[Hit]:
        self.asked.set()
        try:
            return await asyncio.Future()
        finally:
            self.given_up.set()


async def test_a_stop_does_not_wait_for_measurements() -> None:
    vectors = StuckVectors()
    async with RecallProbe(vectors, 1.0, random.Random(1)) as probe:
        probe.sample(Search(unit(7), 10, 0, ()), [])
        await vectors.asked.wait()
    assert vectors.given_up.is_set()


# -- bad input ------------------------------------------------------------------------------------


async def test_bad_input_is_refused_by_field(stub: "CandidateServiceAsyncStub") -> None:
    reader = c.Reader(user_id=1)
    for field, spoil in {
        "reader.user_id": g.GetCandidatesRequest(strategy=SOCIAL),
        "strategy": g.GetCandidatesRequest(reader=reader),
        "limit": g.GetCandidatesRequest(reader=reader, strategy=SOCIAL, limit=501),
        "vector": g.GetCandidatesRequest(
            reader=c.Reader(user_id=1, interest_vector=b"123"), strategy=DISCOVERY
        ),
    }.items():
        with pytest.raises(InvalidArgument) as error:
            await call(stub.GetCandidates, spoil, timeout=5)
        assert field in error.value.fields
