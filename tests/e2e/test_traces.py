"""One request is one trace: whole trees, over real processes and the real protocol."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Sequence
from textwrap import dedent
from typing import Any

import grpc
import httpx
import pytest
from feed.v1.common_pb2 import Candidates, Reader
from feed.v1.ranker_pb2 import RankCandidatesRequest
from feed.v1.ranker_pb2_grpc import RankerServiceStub

from mesh.otlp import Span
from tests.eventually import eventually
from tests.fixtures.mesh import Mesh, orphans, outline, running_mesh
from tests.fixtures.world import Person

FEED = """\
gateway SERVER GET /feed
  gateway INTERNAL stage discovery
    gateway CLIENT feed.v1.CandidateService/GetCandidates
      candidate_svc SERVER feed.v1.CandidateService/GetCandidates
        candidate_svc CLIENT edge.v1.VectorService/Search
          vectors SERVER edge.v1.VectorService/Search
        candidate_svc redis
        candidate_svc sqlite
  gateway INTERNAL stage filter
    gateway CLIENT feed.v1.FilterService/FilterCandidates
      filter_svc SERVER feed.v1.FilterService/FilterCandidates
  gateway INTERNAL stage hydrator
    gateway CLIENT feed.v1.HydratorService/HydrateFeed
      hydrator_svc SERVER feed.v1.HydratorService/HydrateFeed
        hydrator_svc sqlite
  gateway INTERNAL stage ranker
    gateway CLIENT feed.v1.RankerService/RankCandidates
      ranker_svc SERVER feed.v1.RankerService/RankCandidates
        ranker_svc INTERNAL score candidates
        ranker_svc redis
  gateway INTERNAL stage reader
    gateway redis
    gateway sqlite
  gateway INTERNAL stage seen
    gateway CLIENT feed.v1.FilterService/ListSeen
      filter_svc SERVER feed.v1.FilterService/ListSeen
        filter_svc redis
        filter_svc sqlite
  gateway INTERNAL stage served
    gateway PRODUCER send feed.served.v1
      workers CONSUMER process feed.served.v1
        workers INTERNAL append served
  gateway INTERNAL stage snapshots
    gateway redis
  gateway INTERNAL stage social
    gateway CLIENT feed.v1.CandidateService/GetCandidates
      candidate_svc SERVER feed.v1.CandidateService/GetCandidates
        candidate_svc redis
        candidate_svc sqlite
  gateway redis"""

LOGGED = """\
      workers CONSUMER process feed.served.v1
        workers INTERNAL append served
"""


@pytest.fixture(scope="module")
async def mesh() -> AsyncIterator[Mesh]:
    async with running_mesh() as mesh:
        yield mesh


@pytest.fixture(scope="module")
async def reader(mesh: Mesh) -> Person:
    """Follows somebody who has posted, and has a taste: their feed needs every backend."""
    author, stranger, reader = [await mesh.sign_up(n) for n in ("author", "stranger", "reader")]
    await mesh.client.put(f"/user/{author.user_id}/follow", headers=reader.headers)
    for text in ("Sourdough rises overnight.", "Rye needs a patient baker."):
        await mesh.post(author, text)
    liked = (await mesh.post(stranger, "Baguettes want steam.")).json()["post_id"]
    await mesh.post(stranger, "Flour from the old mill.")

    async def embedded_and_liked() -> bool:
        # A like of a post that is not embedded yet teaches nothing.
        await mesh.client.delete(f"/post/{liked}/like", headers=reader.headers)
        await mesh.client.put(f"/post/{liked}/like", headers=reader.headers)
        page = await mesh.feed(reader)
        return any(item["source"] == "discovery" for item in page["items"])

    await eventually(embedded_and_liked, within_s=60, every_s=0.5)
    return reader


def only(spans: Sequence[Span], **wanted: str) -> Span:
    found = [s for s in spans if all(getattr(s, k) == v for k, v in wanted.items())]
    assert len(found) == 1, (wanted, outline(spans))
    return found[0]


def root(spans: Sequence[Span]) -> Span:
    return only(spans, parent_id="")


def feed_tree(spans: Sequence[Span]) -> str:
    """The whole tree of a feed; a user who was not asked about lately is looked up, too."""
    known = root(spans).attributes["feed.identity.hit"]
    return FEED if known else f"{FEED}\n  gateway sqlite"


async def back(mesh: Mesh, name: str, reader: Person) -> None:
    """Starts the process, and waits until those that call it have found it again."""
    await mesh.start(name)

    async def used() -> bool:
        return not (await mesh.feed(reader))["degraded"]

    await eventually(used, within_s=60, every_s=0.2)


async def test_a_feed_is_one_tree_from_rest_to_every_store(mesh: Mesh, reader: Person) -> None:
    page = await mesh.feed(reader)
    assert page["degraded"] == []
    spans = await mesh.whole(page["trace_id"], lambda spans: outline(spans) == feed_tree(spans))
    assert {span.status for span in spans} == {"UNSET"}
    top = root(spans)
    assert top.attributes["http.request.method"] == "GET"
    assert top.attributes["http.route"] == "/feed"
    assert top.attributes["http.response.status_code"] == 200
    assert top.attributes["feed.id"] == page["feed_id"]
    assert top.attributes["feed.items"] == len(page["items"])
    assert top.attributes["feed.is_degraded"] is False
    ranker = only(spans, name="stage ranker")
    assert ranker.attributes["feed.model.version"] == "heuristic/1"
    assert ranker.attributes["feed.candidates.in.social"] == 2
    assert ranker.attributes["feed.stage.outcome"] == "ok"
    assert 0 < ranker.attributes["feed.stage.deadline_used"] < 1
    # What came in is what went on and what was dropped.
    judged = only(spans, name="feed.v1.FilterService/FilterCandidates", kind="SERVER")
    verdicts = sum(n for name, n in judged.attributes.items() if name.startswith("feed.verdict."))
    assert verdicts == top.attributes["feed.candidates"]
    assert all(span.resource["service.namespace"] == "feedmesh" for span in spans)


async def test_a_post_goes_on_through_the_event_log_to_mailboxes_and_vectors(mesh: Mesh) -> None:
    author, follower = await mesh.sign_up("poster"), await mesh.sign_up("follower")
    await mesh.client.put(f"/user/{author.user_id}/follow", headers=follower.headers)
    await mesh.feed(follower)
    outside = "00f067aa0ba902b7"
    trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
    answer = await mesh.post(
        author, "Follow this through.", traceparent=f"00-{trace_id}-{outside}-01"
    )
    assert answer.headers["traceresponse"].split("-")[1] == trace_id
    expected = dedent("""\
        gateway SERVER POST /post
          gateway redis
          gateway sqlite
          workers PRODUCER send feed.posts.v1
            workers CONSUMER process feed.posts.v1
              workers CLIENT edge.v1.VectorService/Upsert
                vectors SERVER edge.v1.VectorService/Upsert
              workers INTERNAL embed texts
              workers redis
              workers sqlite
            workers CONSUMER process feed.posts.v1
              workers redis
              workers sqlite""")

    def found() -> list[Span]:
        spans = mesh.trace(trace_id)
        assert sorted(outline(spans).splitlines()) == sorted(expected.splitlines())
        assert not orphans(spans, outside=[outside])
        return spans

    spans = await eventually(found, within_s=30, every_s=0.1)
    handled = [s for s in spans if s.name == "process feed.posts.v1"]
    by_group = {s.attributes["messaging.consumer.group.name"]: s for s in handled}
    assert set(by_group) == {"fanout", "embedding"}
    assert by_group["fanout"].attributes["feed.fanout.mailboxes"] == 1
    assert by_group["fanout"].attributes["messaging.system"] == "redis"
    # Two processes, one service.
    sender = only(spans, name="send feed.posts.v1")
    assert sender.resource["service.instance.id"] != handled[0].resource["service.instance.id"]


async def test_a_backend_that_is_away_is_a_failed_call_in_a_feed_that_goes_on(
    mesh: Mesh, reader: Person
) -> None:
    await mesh.stop("vectors")
    page = await mesh.feed(reader)
    await back(mesh, "vectors", reader)
    assert page["degraded"] == ["vectors"]
    away = "candidate_svc CLIENT edge.v1.VectorService/Search !UNAVAILABLE"
    spans = await mesh.whole(page["trace_id"], lambda spans: away in outline(spans))
    assert root(spans).status == "UNSET"
    assert root(spans).attributes["feed.degraded"] == ("vectors",)
    assert root(spans).attributes["feed.is_degraded"] is True
    server = only(
        spans, name="feed.v1.CandidateService/GetCandidates", kind="SERVER",
        parent_id=only(
            spans, kind="CLIENT", parent_id=only(spans, name="stage discovery").span_id
        ).span_id,
    )  # fmt: skip
    assert server.attributes["feed.without.vectors"] == "UNAVAILABLE"
    failed = [s for s in spans if s.status == "ERROR"]
    assert {s.name for s in failed} == {"edge.v1.VectorService/Search"}


async def test_a_service_that_is_away_is_tried_again_and_then_stood_in_for(
    mesh: Mesh, reader: Person
) -> None:
    await mesh.stop("ranker")
    page = await mesh.feed(reader)
    await back(mesh, "ranker", reader)
    assert page["degraded"] == ["ranker"]
    spans = await mesh.whole(page["trace_id"], root)
    stage = only(spans, name="stage ranker")
    assert (stage.status, stage.attributes["error.type"]) == ("ERROR", "UNAVAILABLE")
    assert stage.attributes["feed.stage.outcome"] == "stand_in"
    attempts = [s for s in spans if s.parent_id == stage.span_id]
    assert [s.attributes.get("feed.rpc.previous_attempts", 0) for s in attempts] == [0, 1, 2]
    assert {s.attributes["rpc.response.status_code"] for s in attempts} == {"UNAVAILABLE"}
    assert root(spans).status == "UNSET"


async def test_a_service_that_does_not_answer_ends_at_its_share_of_the_deadline(
    mesh: Mesh, reader: Person
) -> None:
    mesh.pause("ranker")
    try:
        page = await mesh.feed(reader)
    finally:
        mesh.resume("ranker")
    assert page["degraded"] == ["ranker"]
    spans = await mesh.whole(page["trace_id"], root)
    stage = only(spans, name="stage ranker")
    call = only(spans, name="feed.v1.RankerService/RankCandidates", kind="CLIENT")
    assert call.parent_id == stage.span_id
    for span in (call, stage):
        assert (span.status, span.attributes["error.type"]) == ("ERROR", "DEADLINE_EXCEEDED")
    share = stage.attributes["feed.stage.budget"]
    assert stage.attributes["feed.stage.deadline_used"] == pytest.approx(share, rel=0.3)


async def test_a_feed_that_misses_its_deadline_is_an_error_down_to_the_call(
    mesh: Mesh, reader: Person
) -> None:
    mesh.pause("hydrator")
    try:
        answer = await mesh.client.get("/feed", headers=reader.headers)
    finally:
        mesh.resume("hydrator")
    assert answer.status_code == 504
    spans = await mesh.whole(answer.json()["trace_id"], root)
    call = only(spans, name="feed.v1.HydratorService/HydrateFeed", kind="CLIENT")
    assert call.attributes["rpc.response.status_code"] == "DEADLINE_EXCEEDED"
    assert only(spans, name="stage hydrator").attributes["feed.stage.outcome"] == "failed"
    top = root(spans)
    assert (top.status, top.attributes["http.response.status_code"]) == ("ERROR", 504)
    assert top.attributes["error.type"]


async def test_a_client_that_goes_away_stops_the_work_and_every_span_ends(
    mesh: Mesh, reader: Person
) -> None:
    trace_id = "a0" * 16
    headers = {**reader.headers, "traceparent": f"00-{trace_id}-{'b0' * 8}-01"}
    assert mesh.valkey.pid is not None
    os.kill(mesh.valkey.pid, signal.SIGSTOP)
    try:
        # Long enough to be among the services, which wait for Valkey; then the client hangs up.
        with pytest.raises(httpx.ReadTimeout):
            await mesh.client.get("/feed", headers=headers, timeout=1.2)

        def ended() -> list[Span]:
            spans = mesh.trace(trace_id)
            assert not orphans(spans, outside=["b0" * 8])
            assert any(span.name == "GET /feed" for span in spans)
            return spans

        spans = await eventually(ended, within_s=30, every_s=0.1)
    finally:
        os.kill(mesh.valkey.pid, signal.SIGCONT)
    top = only(spans, name="GET /feed")
    assert top.status == "UNSET"
    assert top.attributes["http.response.status_code"] == 499
    cut_off = [s for s in spans if s.attributes.get("rpc.response.status_code") == "CANCELLED"]
    by_kind = {kind: {s.status for s in cut_off if s.kind == kind} for kind in ("CLIENT", "SERVER")}
    assert by_kind == {"CLIENT": {"ERROR"}, "SERVER": {"UNSET"}}
    # The services stopped when the client did, rather than at their own deadlines.
    end = top.end_ns
    assert all(s.end_ns < end + 1_000_000_000 for s in spans)


async def test_a_refused_call_is_an_error_at_the_caller_and_none_at_the_service(
    mesh: Mesh,
) -> None:
    trace_id, caller = "c0" * 16, "d0" * 8
    uneven = Candidates(post_ids=[1, 2], author_ids=[1])
    async with grpc.aio.insecure_channel(mesh.env["FEED_RANKER_ADDRESS"]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await RankerServiceStub(channel).RankCandidates(
                RankCandidatesRequest(reader=Reader(user_id=1), candidates=uneven),
                metadata=(("traceparent", f"00-{trace_id}-{caller}-01"),),
                timeout=10,
            )
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    [span] = await eventually(lambda: mesh.trace(trace_id))
    assert (span.parent_id, span.service, span.kind) == (caller, "ranker_svc", "SERVER")
    assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"
    assert (span.status, span.attributes.get("error.type")) == ("UNSET", None)


async def test_fifty_feeds_at_once_are_fifty_whole_trees(mesh: Mesh, reader: Person) -> None:
    pages = await asyncio.gather(*(mesh.feed(reader) for _ in range(50)))
    assert len({page["trace_id"] for page in pages}) == 50

    def same_tree(spans: Sequence[Span]) -> bool:
        # What the log worker does for several feeds at once is a trace of its own.
        here = [each for each in spans if each.resource["service.name"] != "workers"]
        return outline(here, errors=False) == feed_tree(here).replace(LOGGED, "")

    complete = 0
    for page in pages:
        spans = await mesh.whole(page["trace_id"], root)
        assert root(spans).attributes["feed.id"] == page["feed_id"]
        # A busy machine may have cut something off. Where a page is not the worse for it, as for a
        # rate limit that was not waited for, the tree is the same.
        if not page["degraded"]:
            await mesh.whole(page["trace_id"], same_tree)
            complete += 1
    assert complete


async def test_users_and_cursors_are_not_named_in_a_trace(mesh: Mesh, reader: Person) -> None:
    other = await mesh.sign_up("followed")
    text = "Nobody reads this in a trace."
    answers = [
        await mesh.client.put(f"/user/{other.user_id}/follow", headers=reader.headers),
        await mesh.client.get(f"/user/{other.user_id}", headers=reader.headers),
        await mesh.post(other, text),
    ]
    page = await mesh.feed(reader, limit=1)
    answers.append(
        await mesh.client.get(
            "/feed", params={"cursor": page["next_cursor"]}, headers=reader.headers
        )
    )
    for answer in answers:
        trace_id = answer.headers["traceresponse"].split("-")[1]
        spans = await mesh.whole(trace_id, root)
        said = " ".join(
            f"{value}" for s in spans for value in (*s.attributes.values(), s.name, s.events)
        )
        hidden = (text, other.user_id, other.username, reader.user_id, page["next_cursor"],
                  reader.headers["Authorization"].removeprefix("Bearer "))  # fmt: skip
        assert not [each for each in hidden if each in said]
        assert root(spans).attributes["user.hash"]


async def test_a_collector_that_fails_or_is_slow_changes_no_response(
    mesh: Mesh, reader: Person
) -> None:
    def shown(page: dict[str, Any]) -> set[str]:
        return {item["post_id"] for item in page["items"]}

    # When this one is in the feed, so is what other tests have posted.
    last = await mesh.sign_up("last")
    await mesh.client.put(f"/user/{last.user_id}/follow", headers=reader.headers)
    post_id = (await mesh.post(last, "The last one.")).json()["post_id"]

    async def whole_page() -> dict[str, Any]:
        page = await mesh.feed(reader)
        assert not page["degraded"]
        assert post_id in shown(page)
        return page

    usual = shown(await eventually(whole_page))
    for behaviour in ({"fail": True}, {"delay_s": 30.0}):
        mesh.receiver.behave(**behaviour)
        pages = [await mesh.feed(reader) for _ in range(20)]
        # A busy machine degrades a page now and then, with any collector.
        whole = [shown(page) for page in pages if not page["degraded"]]
        assert whole
        assert whole == [usual] * len(whole)

    async def noticed() -> bool:
        lines = (await mesh.client.get("/metrics")).text.splitlines()
        failed = [n for n in lines if n.startswith('trace_spans_exported_total{outcome="failed"}')]
        return bool(failed) and float(failed[0].split()[1]) > 0

    await eventually(noticed, within_s=30)
    mesh.receiver.behave()
    # Traces come again, without a restart of ours.
    page = await mesh.feed(reader)
    await mesh.whole(page["trace_id"], root)
