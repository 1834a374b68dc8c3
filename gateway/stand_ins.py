"""What takes a step's place when it is away: pure, simple, and safe rather than good."""

from collections import defaultdict

from feed.v1 import common_pb2, filter_pb2, hydrator_pb2, ranker_pb2

from gateway.snapshots import Snapshot
from gateway.stages import Run
from gateway.steps import RANK_LIMIT

MODEL_VERSION = "retrieval"


def no_candidates(run: Run, reader: common_pb2.Reader) -> common_pb2.Candidates:
    """The other source fills the page alone."""
    return common_pb2.Candidates()


def nothing_seen(run: Run) -> filter_pb2.SeenPosts:
    """A post may be shown twice, which is better than none."""
    return filter_pb2.SeenPosts()


def judge_by_safety(
    run: Run,
    reader: common_pb2.Reader,
    candidates: common_pb2.Candidates,
    seen: filter_pb2.SeenPosts,
) -> filter_pb2.FilterCandidatesResponse:
    """Drops what must never be shown: blocked authors above all. Seen posts are kept."""
    blocked, following = set(reader.blocked_ids), set(reader.following_ids)
    met: set[int] = set()
    verdicts: list[filter_pb2.Verdict.ValueType] = []
    kept = 0
    rows = zip(candidates.post_ids, candidates.author_ids, candidates.sources, strict=True)
    for post_id, author_id, source in rows:
        if author_id == 0:
            verdict = filter_pb2.VERDICT_DELETED
        elif author_id == reader.user_id:
            verdict = filter_pb2.VERDICT_OWN
        elif author_id in blocked:
            verdict = filter_pb2.VERDICT_BLOCKED
        elif source == common_pb2.CANDIDATE_SOURCE_SOCIAL and author_id not in following:
            verdict = filter_pb2.VERDICT_NOT_FOLLOWED
        elif post_id in met:
            verdict = filter_pb2.VERDICT_DUPLICATE
        elif kept == RANK_LIMIT:
            verdict = filter_pb2.VERDICT_OVER_LIMIT
        else:
            verdict = filter_pb2.VERDICT_KEPT
            kept += 1
            met.add(post_id)
        verdicts.append(verdict)
    return filter_pb2.FilterCandidatesResponse(verdicts=verdicts, penalties=[0.0] * len(verdicts))


def rank_by_retrieval(
    run: Run,
    reader: common_pb2.Reader,
    kept: common_pb2.Candidates,
    penalties: list[float],
) -> ranker_pb2.RankCandidatesResponse:
    """Scores 1, 1/2, 1/3 ... within each source, the newer of equals first.

    Retrieval scores compare within one source only; so the sources take turns.
    """
    by_source: dict[int, list[int]] = defaultdict(list)
    for index, source in enumerate(kept.sources):
        by_source[source].append(index)
    scores = [0.0] * len(kept.post_ids)
    for indices in by_source.values():
        indices.sort(key=lambda i: (kept.retrieval_scores[i], kept.post_ids[i]), reverse=True)
        for rank, index in enumerate(indices):
            scores[index] = 1 / (1 + rank) - penalties[index]
    return ranker_pb2.RankCandidatesResponse(scores=scores, model_version=MODEL_VERSION)


def not_logged(
    run: Run,
    snapshot: Snapshot,
    kept: common_pb2.Candidates,
    ranked: ranker_pb2.RankCandidatesResponse,
    ordered: hydrator_pb2.HydrateFeedResponse,
) -> None:
    """No model learns from this feed."""


def not_saved(run: Run, snapshot: Snapshot) -> bool:
    """The feed has one page."""
    return False
