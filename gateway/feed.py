"""GET /feed: the whole pipeline, and the table of its stages."""

import asyncio
from typing import Annotated
from uuid import uuid4

from fastapi import APIRouter, Query, Request
from feed.v1 import common_pb2

from gateway import pages, snapshots, stand_ins, steps
from gateway.auth import Me
from gateway.backends import Here
from gateway.connection import while_connected
from gateway.problems import Gone, responses
from gateway.schemas import FeedPage
from gateway.stages import Run, Stage
from mesh import columns, deadlines, metrics, telemetry
from mesh.errors import PermissionDenied
from mesh.ids import now_ms

router = APIRouter(tags=["feed"])

# Each stage: its name in metrics and `degraded`, its share of FEED_FEED_DEADLINE_S, what it does,
# and what stands in for it when it is away or late (None: there is no page without it).
READER = Stage("reader", 0.15, steps.load_reader, None)
SOCIAL = Stage("social", 0.25, steps.find_social, stand_ins.no_candidates)
DISCOVERY = Stage("discovery", 0.25, steps.find_discovery, stand_ins.no_candidates)
SEEN = Stage("seen", 0.25, steps.list_seen, stand_ins.nothing_seen)
FILTER = Stage("filter", 0.10, steps.judge, stand_ins.judge_by_safety)
RANKER = Stage("ranker", 0.20, steps.rank, stand_ins.rank_by_retrieval)
HYDRATOR = Stage("hydrator", 0.25, steps.hydrate, None)
SNAPSHOTS = Stage("snapshots", 0.05, steps.save, stand_ins.not_saved)
# Beside the snapshots.
SERVED = Stage("served", 0.05, steps.log_served, stand_ins.not_logged)
STAGES = (READER, SOCIAL, DISCOVERY, SEEN, FILTER, RANKER, HYDRATOR, SNAPSHOTS, SERVED)


async def make_feed(run: Run) -> FeedPage:
    """The first page of a new feed."""
    reader = await READER(run)
    social, discovery, seen = await asyncio.gather(
        SOCIAL(run, reader), DISCOVERY(run, reader), SEEN(run)
    )
    candidates = common_pb2.Candidates()
    candidates.MergeFrom(social)
    candidates.MergeFrom(discovery)
    judged = await FILTER(run, reader, candidates, seen)
    kept = [i for i, verdict in enumerate(judged.verdicts) if verdict in snapshots.KEPT]
    chosen = columns.select(candidates, kept)
    ranked = await RANKER(run, reader, chosen, [judged.penalties[i] for i in kept])
    ordered = await HYDRATOR(run, reader, chosen, ranked)
    snapshot = snapshots.take(
        feed_id=uuid4().hex,
        reader_id=run.reader_id,
        created_at_ms=now_ms(),
        trace_id=telemetry.trace_id(),
        degraded=list(run.degraded),
        candidates=candidates,
        judged=judged,
        kept=kept,
        ranked=ranked,
        ordered=ordered,
    )
    resumable, _ = await asyncio.gather(
        SNAPSHOTS(run, snapshot), SERVED(run, snapshot, chosen, ranked, ordered)
    )
    return pages.first(run, snapshot, ordered, resumable)


@router.get("/feed", responses=responses(PermissionDenied, Gone))
async def get_feed(
    request: Request,
    here: Here,
    me: Me,
    limit: Annotated[int, Query(ge=1, le=50, description="Posts on the page.")] = steps.PAGE_SIZE,
    cursor: Annotated[
        str | None,
        Query(max_length=2000, description="`next_cursor` of the page before, for 10 minutes."),
    ] = None,
) -> FeedPage:
    """A page of your feed: a new feed without a cursor, else the next page of the same one."""
    run = Run(here, me, limit)
    with metrics.feed_stage("total") as timing, deadlines.within(run.deadline_s):
        making = make_feed(run) if cursor is None else pages.resume(run, cursor)
        page = await while_connected(request, making)
        if page.degraded:
            timing.outcome = "degraded"
        return page
