"""POST /impressions: what was shown. The next feed knows it at once."""

from fastapi import APIRouter, Depends
from feed.v1 import events_pb2

from gateway.announcing import announce
from gateway.auth import Me, require_json
from gateway.backends import Here
from gateway.problems import BadRequest, TooLarge, UnsupportedMediaType, responses
from gateway.schemas import ImpressionBatch, ImpressionReceipt, ImpressionReport
from mesh import telemetry
from mesh.degrade import best_effort
from mesh.ids import now_ms
from stores.events import codec
from stores.events.port import Event, OutgoingRecord, Topic

router = APIRouter(tags=["feed"])
_TIMEOUT_S = 1.0


@router.post(
    "/impressions",
    status_code=202,
    dependencies=[Depends(require_json)],
    responses=responses(BadRequest, TooLarge, UnsupportedMediaType),
)
async def report_impressions(here: Here, me: Me, batch: ImpressionBatch) -> ImpressionReceipt:
    """Reports posts that were on the screen. Reports of posts that do not exist are ignored."""
    authors = await here.posts.authors([item.post_id for item in batch.items])
    shown = [item for item in batch.items if item.post_id in authors]
    seen_at_ms = now_ms()
    if shown:
        # First, so that the next feed is right even if the reader asks for it right away.
        await best_effort(
            here.recent_seen.record(me, [item.post_id for item in shown], seen_at_ms),
            None,
            backend="recent_seen",
            degraded=[],
            timeout_s=_TIMEOUT_S,
        )
        await announce(here, [_record(me, item, authors, seen_at_ms) for item in shown])
    telemetry.annotate({"feed.impressions": len(shown)})
    return ImpressionReceipt(accepted=len(shown), ignored=len(batch.items) - len(shown))


def _record(
    me: int, item: ImpressionReport, authors: dict[int, int], seen_at_ms: int
) -> OutgoingRecord:
    message = events_pb2.ImpressionEvent(
        user_id=me,
        post_id=item.post_id,
        author_id=authors[item.post_id],
        seen_at_ms=seen_at_ms,
        position=item.position,
        feed_id=item.feed_id or "",
        dwell_ms=item.dwell_ms,
    )
    return codec.encode(Event(Topic.IMPRESSIONS, me, message), codec.new_event_id())
