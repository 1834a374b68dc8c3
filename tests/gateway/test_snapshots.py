"""The snapshot of a feed, and what is read from it."""

from feed.v1 import common_pb2, filter_pb2, hydrator_pb2, ranker_pb2

from gateway import explain, snapshots
from gateway.snapshots import Snapshot


def a_snapshot() -> Snapshot:
    """Post 11 twice, 12 seen, 13 and 11 shown, in that order."""
    return snapshots.take(
        feed_id="f" * 32,
        reader_id=7,
        created_at_ms=1_700_000_000_000,
        trace_id="t" * 32,
        degraded=["vectors"],
        candidates=common_pb2.Candidates(
            post_ids=[11, 12, 11, 13],
            author_ids=[1, 2, 1, 3],
            sources=[
                common_pb2.CANDIDATE_SOURCE_SOCIAL,
                common_pb2.CANDIDATE_SOURCE_DISCOVERY,
                common_pb2.CANDIDATE_SOURCE_DISCOVERY,
                common_pb2.CANDIDATE_SOURCE_EXPLORATION,
            ],
            retrieval_scores=[1.0, 0.9, 0.8, 0.7],
        ),
        judged=filter_pb2.FilterCandidatesResponse(
            verdicts=[
                filter_pb2.VERDICT_KEPT,
                filter_pb2.VERDICT_SEEN,
                filter_pb2.VERDICT_DUPLICATE,
                filter_pb2.VERDICT_PENALIZED,
            ],
            penalties=[0, 0, 0, 0.25],
        ),
        kept=[0, 3],
        ranked=ranker_pb2.RankCandidatesResponse(
            scores=[0.5, 0.75],
            model_version="heuristic/1",
            topic_similarities=[0.1, 0.2],
            author_affinities=[0.3, 0.4],
        ),
        ordered=hydrator_pb2.HydrateFeedResponse(
            order=[1, 0],
            placements=[hydrator_pb2.PLACEMENT_BY_SCORE, hydrator_pb2.PLACEMENT_AUTHOR_SPREAD],
        ),
    )


def test_a_snapshot_survives_being_kept() -> None:
    assert Snapshot.from_bytes(a_snapshot().to_bytes()) == a_snapshot()


def test_the_rest_of_a_feed_is_what_comes_after_without_those_blocked_since() -> None:
    snapshot = a_snapshot()
    assert [snapshot.post_at(place) for place in snapshot.ahead(0, without=())] == [13, 11]
    assert [snapshot.post_at(place) for place in snapshot.ahead(1, without=())] == [11]
    assert snapshot.ahead(0, without={3}) == [1]
    assert snapshot.ahead(2, without=()) == []


def test_every_candidate_has_a_fate() -> None:
    first, seen, duplicate, penalized = explain.fates(a_snapshot())
    assert (first.position, first.placement, first.score) == (1, "author_spread", 0.5)
    assert (seen.verdict, seen.score, seen.position) == ("seen", None, None)
    assert (duplicate.post_id, duplicate.verdict) == (11, "duplicate")
    assert (penalized.verdict, penalized.penalty, penalized.position) == ("penalized", 0.25, 0)
    assert penalized.source == "exploration"
    assert penalized.topic_similarity == 0.2


def test_a_ranker_that_gave_no_features_leaves_them_unknown() -> None:
    values = snapshots._spread([], [0, 3], 4)
    assert values == [None] * 4
