"""Why a feed is as it is: the fate of every candidate, for the feed's own reader."""

from typing import Annotated, Any

from fastapi import APIRouter, Path

from gateway import pages
from gateway.auth import Me
from gateway.backends import Backends, Here
from gateway.problems import responses
from gateway.schemas import Explanation, Fate, FateExplanation, InId, utc
from gateway.snapshots import Snapshot
from mesh.errors import NotFound

router = APIRouter(tags=["feed"])
FeedIdInPath = Annotated[str, Path(max_length=64, description="`feed_id` of a page.")]
# A post that several sources found has several fates; this one says the least.
_DUPLICATE = "duplicate"


@router.get("/feed/{feed_id}/explain", responses=responses(NotFound))
async def explain_feed(here: Here, me: Me, feed_id: FeedIdInPath) -> Explanation:
    """The fate of every candidate of the feed, for as long as the feed can be resumed."""
    snapshot = await _own_snapshot(here, me, feed_id)
    return Explanation(**_facts(snapshot), candidates=fates(snapshot))


@router.get("/feed/{feed_id}/explain/{post_id}", responses=responses(NotFound))
async def explain_post(here: Here, me: Me, feed_id: FeedIdInPath, post_id: InId) -> FateExplanation:
    """The fate of one candidate of the feed."""
    snapshot = await _own_snapshot(here, me, feed_id)
    found = [fate for fate in fates(snapshot) if fate.post_id == post_id]
    if not found:
        raise NotFound("The post was not among this feed's candidates: no source retrieved it.")
    fate = next((fate for fate in found if fate.verdict != _DUPLICATE), found[0])
    return FateExplanation(**_facts(snapshot), **dict(fate))


def fates(snapshot: Snapshot) -> list[Fate]:
    """What became of each candidate, in the order of retrieval."""
    positions = {index: position for position, index in enumerate(snapshot.order)}
    return [
        Fate(
            post_id=snapshot.post_ids[i],
            author_id=snapshot.author_ids[i] or None,
            source=snapshot.sources[i],
            retrieval_score=snapshot.retrieval_scores[i],
            verdict=snapshot.verdicts[i],
            penalty=snapshot.penalties[i],
            score=snapshot.scores[i],
            topic_similarity=snapshot.topic_similarities[i],
            author_affinity=snapshot.author_affinities[i],
            position=positions.get(i),
            placement=snapshot.placements[i],
        )
        for i in range(len(snapshot.post_ids))
    ]


async def _own_snapshot(here: Backends, me: int, feed_id: str) -> Snapshot:
    snapshot = await pages.load(here, feed_id)
    if snapshot is None or snapshot.reader_id != me:
        raise NotFound("You have no such feed, or not any more.")
    return snapshot


def _facts(snapshot: Snapshot) -> dict[str, Any]:
    return {
        "feed_id": snapshot.feed_id,
        "created_at": utc(snapshot.created_at_ms),
        "model_version": snapshot.model_version,
        "degraded": snapshot.degraded,
        "trace_id": snapshot.trace_id,
    }
