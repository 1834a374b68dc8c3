"""What takes a stage's place keeps the reader safe."""

from typing import cast

from feed.v1 import common_pb2, filter_pb2
from hypothesis import given
from hypothesis import strategies as st

from gateway import feed, stand_ins
from gateway.snapshots import KEPT
from gateway.stages import Run
from gateway.steps import RANK_LIMIT
from mesh import columns

READER = common_pb2.Reader(user_id=1, following_ids=[2, 3], blocked_ids=[4])
SEEN = filter_pb2.SeenPosts()
run = cast(Run, None)  # stand-ins ask no backend

row = st.tuples(
    st.integers(1, 400), st.integers(0, 6), st.integers(1, 4), st.floats(0, 1, width=32)
)
rows = st.lists(row, max_size=300)


def candidates_of(rows: list[tuple[int, int, int, float]]) -> common_pb2.Candidates:
    message = common_pb2.Candidates()
    for post_id, author_id, source, score in rows:
        message.post_ids.append(post_id)
        message.author_ids.append(author_id)
        message.sources.append(common_pb2.CandidateSource.ValueType(source))
        message.retrieval_scores.append(score)
    return message


@given(rows)
def test_without_the_filter_nothing_unsafe_is_kept(rows: list[tuple[int, int, int, float]]) -> None:
    candidates = candidates_of(rows)
    judged = stand_ins.judge_by_safety(run, READER, candidates, SEEN)
    assert len(judged.verdicts) == len(judged.penalties) == len(rows)
    kept = [rows[i] for i, verdict in enumerate(judged.verdicts) if verdict in KEPT]
    assert len(kept) <= RANK_LIMIT
    assert len({post_id for post_id, *_ in kept}) == len(kept)
    for _, author_id, source, _ in kept:
        assert author_id not in {0, 1, 4}
        assert source != common_pb2.CANDIDATE_SOURCE_SOCIAL or author_id in {2, 3}


@given(rows)
def test_without_the_filter_a_safe_post_is_not_lost(
    rows: list[tuple[int, int, int, float]],
) -> None:
    candidates = candidates_of(rows[:RANK_LIMIT])
    judged = stand_ins.judge_by_safety(run, READER, candidates, SEEN)
    kept = {rows[i][0] for i, verdict in enumerate(judged.verdicts) if verdict in KEPT}
    safe = {
        post_id
        for post_id, author_id, source, _ in rows[:RANK_LIMIT]
        if author_id in {2, 3} or (author_id in {5, 6} and source != 1)
    }
    assert kept == safe


@given(st.lists(row, max_size=150, unique_by=lambda row: row[0]))
def test_without_the_ranker_the_order_within_a_source_is_retrievals(
    rows: list[tuple[int, int, int, float]],
) -> None:
    kept = candidates_of(rows)
    ranked = stand_ins.rank_by_retrieval(run, READER, kept, [0.0] * len(rows))
    assert len(ranked.scores) == len(rows)
    for source in range(1, 5):
        mine = [i for i, row in enumerate(rows) if row[2] == source]
        by_retrieval = sorted(mine, key=lambda i: (kept.retrieval_scores[i], rows[i][0]))
        scores = [ranked.scores[i] for i in by_retrieval]
        assert scores == sorted(scores)


def test_without_the_ranker_a_penalty_still_counts() -> None:
    kept = candidates_of([(1, 2, 1, 1.0), (2, 2, 1, 0.5)])
    ranked = stand_ins.rank_by_retrieval(run, READER, kept, [0.9, 0.0])
    assert ranked.scores[0] < ranked.scores[1]


def test_the_stages_shares_leave_time_for_the_last_one() -> None:
    share = {stage.name: stage.share for stage in feed.STAGES}
    together = max(share.pop(name) for name in ("social", "discovery", "seen"))
    together += max(share.pop(name) for name in ("snapshots", "served"))
    assert sum(share.values()) + together <= 1.0001


def test_only_the_source_of_truth_may_fail_a_page() -> None:
    assert [stage.name for stage in feed.STAGES if stage.stand_in is None] == ["reader", "hydrator"]


def test_columns_stay_together_when_they_are_selected() -> None:
    kept = columns.select(candidates_of([(1, 2, 1, 1.0), (2, 3, 2, 0.5)]), [1])
    assert list(kept.post_ids) == [2]
    assert list(kept.author_ids) == [3]
