"""The steps of GET /feed: what each asks of whom."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from feed.v1 import candidate_pb2, common_pb2, filter_pb2, hydrator_pb2, ranker_pb2

from gateway import served, wire
from gateway.announcing import announce
from gateway.snapshots import KEPT, Snapshot
from gateway.stages import Run
from mesh import metrics, packing, telemetry
from mesh.channels import call
from mesh.degrade import best_effort
from stores.features.port import UserFeatures

T = TypeVar("T")
U = TypeVar("U")

# Posts on a page when the client does not say.
PAGE_SIZE = 20
# The most that the ranker takes.
RANK_LIMIT = 150
# Of the feed's deadline, for the part of the reader's context that a feed can do without.
_FEATURES_SHARE = 0.1


async def load_reader(run: Run) -> common_pb2.Reader:
    """The reader's context: who is around them, and what they like."""
    features = best_effort(
        run.here.features.user(run.reader_id),
        UserFeatures(),
        backend="features",
        degraded=run.degraded,
        timeout_s=_FEATURES_SHARE * run.deadline_s,
    )
    around, user = await _both(run.here.graph.neighborhood(run.reader_id), features)
    telemetry.annotate(
        {
            "feed.reader.following": len(around.following),
            "feed.reader.has_taste": user.interest_vector is not None,
        }
    )
    return common_pb2.Reader(
        user_id=run.reader_id,
        interest_vector=packing.pack(user.interest_vector),
        following_ids=around.following,
        pulled_author_ids=around.pulled,
        blocked_ids=around.blocked,
        follower_count=user.follower_count,
        avg_engagement_rate=user.avg_engagement_rate,
    )


async def find_social(run: Run, reader: common_pb2.Reader) -> common_pb2.Candidates:
    """Posts of followed authors."""
    return await _candidates(
        run,
        reader,
        candidate_pb2.RETRIEVAL_STRATEGY_SOCIAL,
        run.here.settings.social_limit,
    )


async def find_discovery(run: Run, reader: common_pb2.Reader) -> common_pb2.Candidates:
    """Posts of strangers."""
    return await _candidates(
        run,
        reader,
        candidate_pb2.RETRIEVAL_STRATEGY_DISCOVERY,
        run.here.settings.discovery_limit,
    )


async def list_seen(run: Run) -> filter_pb2.SeenPosts:
    """What the reader saw lately."""
    request = filter_pb2.ListSeenRequest(reader_id=run.reader_id)
    answer = await call(run.here.services.filter.ListSeen, request, timeout=run.deadline_s)
    run.note(answer.degraded)
    return answer.seen


async def judge(
    run: Run,
    reader: common_pb2.Reader,
    candidates: common_pb2.Candidates,
    seen: filter_pb2.SeenPosts,
) -> filter_pb2.FilterCandidatesResponse:
    """A verdict for every candidate."""
    request = filter_pb2.FilterCandidatesRequest(
        reader=reader,
        candidates=candidates,
        seen=seen,
        # Who asks for a longer page does not thereby ask to see posts again.
        page_size=min(run.limit, PAGE_SIZE),
        max_kept=RANK_LIMIT,
    )
    judged = await call(run.here.services.filter.FilterCandidates, request, timeout=run.deadline_s)
    if telemetry.is_recording():
        kept = [
            source
            for source, verdict in zip(candidates.sources, judged.verdicts, strict=True)
            if verdict in KEPT
        ]
        telemetry.annotate(_by_source("feed.candidates.in", candidates.sources))
        telemetry.annotate(_by_source("feed.candidates.out", kept))
    return judged


async def rank(
    run: Run,
    reader: common_pb2.Reader,
    kept: common_pb2.Candidates,
    penalties: list[float],
) -> ranker_pb2.RankCandidatesResponse:
    """A score for every kept candidate."""
    request = ranker_pb2.RankCandidatesRequest(reader=reader, candidates=kept, penalties=penalties)
    answer = await call(run.here.services.ranker.RankCandidates, request, timeout=run.deadline_s)
    run.note(answer.degraded)
    telemetry.annotate(
        {
            **_by_source("feed.candidates.in", kept.sources),
            "feed.model.version": answer.model_version,
        }
    )
    return answer


async def hydrate(
    run: Run,
    reader: common_pb2.Reader,
    kept: common_pb2.Candidates,
    ranked: ranker_pb2.RankCandidatesResponse,
) -> hydrator_pb2.HydrateFeedResponse:
    """The order of the whole feed, and the posts of its first page."""
    request = hydrator_pb2.HydrateFeedRequest(
        reader=reader, candidates=kept, scores=ranked.scores, limit=run.limit
    )
    telemetry.annotate(_by_source("feed.candidates.in", kept.sources))
    return await call(run.here.services.hydrator.HydrateFeed, request, timeout=run.deadline_s)


async def save(run: Run, snapshot: Snapshot) -> bool:
    """Keeps the snapshot; True, because then the feed can be resumed."""
    await run.here.snapshots.save(
        snapshot.feed_id, snapshot.to_bytes(), run.here.settings.feed_ttl_s
    )
    return True


async def log_served(
    run: Run,
    snapshot: Snapshot,
    kept: common_pb2.Candidates,
    ranked: ranker_pb2.RankCandidatesResponse,
    ordered: hydrator_pb2.HydrateFeedResponse,
) -> None:
    """Tells the event log what is served and why."""
    await announce(run.here, [served.record(snapshot, kept, ranked, ordered)])


async def _candidates(
    run: Run,
    reader: common_pb2.Reader,
    strategy: candidate_pb2.RetrievalStrategy.ValueType,
    limit: int,
) -> common_pb2.Candidates:
    request = candidate_pb2.GetCandidatesRequest(reader=reader, strategy=strategy, limit=limit)
    answer = await call(run.here.services.candidate.GetCandidates, request, timeout=run.deadline_s)
    run.note(answer.degraded)
    telemetry.annotate(_by_source("feed.candidates.out", answer.candidates.sources))
    metrics.came_from(_main_source(answer.candidates.sources))
    return answer.candidates


def _by_source(name: str, sources: Sequence[int]) -> dict[str, int]:
    """Span attributes: how many candidates there are of each source; none that nobody reads."""
    if not telemetry.is_recording():
        return {}
    return {f"{name}.{wire.source_name(each)}": n for each, n in Counter(sources).items()}


def _main_source(sources: Sequence[int]) -> str:
    """Where most of the candidates came from; none when there are none."""
    return wire.source_name(Counter(sources).most_common(1)[0][0]) if sources else "none"


async def _both(first: Coroutine[Any, Any, T], second: Coroutine[Any, Any, U]) -> tuple[T, U]:
    """Both results; the failure of one ends the other and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            one, two = group.create_task(first), group.create_task(second)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return one.result(), two.result()
