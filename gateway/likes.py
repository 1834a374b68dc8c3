"""Likes of posts. Both requests may be repeated."""

from datetime import UTC, datetime

from fastapi import APIRouter, Response
from feed.v1 import events_pb2

from gateway import hydration
from gateway.auth import Me
from gateway.backends import Here
from gateway.problems import responses
from gateway.schemas import InId
from mesh.errors import NotFound
from mesh.ids import now_ms
from stores.events.port import Event, Topic

router = APIRouter(tags=["posts"])
Action = events_pb2.EngagementEvent.Action


@router.put("/post/{post_id}/like", status_code=204, responses=responses(NotFound))
async def like(here: Here, me: Me, post_id: InId) -> Response:
    """Likes the post."""
    author_id = await hydration.visible_author(here, me, post_id)
    event = _event(Action.ACTION_LIKED, me, post_id, author_id)
    await here.posts.like(me, post_id, datetime.now(UTC), event)
    return Response(status_code=204)


@router.delete("/post/{post_id}/like", status_code=204, responses=responses(NotFound))
async def unlike(here: Here, me: Me, post_id: InId) -> Response:
    """Takes the like back."""
    authors = await here.posts.authors([post_id])
    if post_id not in authors:
        raise NotFound("There is no such post.")
    event = _event(Action.ACTION_UNLIKED, me, post_id, authors[post_id])
    await here.posts.unlike(me, post_id, event)
    return Response(status_code=204)


def _event(action: Action.ValueType, me: int, post_id: int, author_id: int) -> Event:
    message = events_pb2.EngagementEvent(
        action=action,
        user_id=me,
        post_id=post_id,
        author_id=author_id,
        occurred_at_ms=now_ms(),
    )
    return Event(Topic.ENGAGEMENTS, me, message)
