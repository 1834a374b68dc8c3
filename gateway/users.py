"""Users, and how they stand to one another."""

import asyncio
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Query, Request, Response
from feed.v1 import events_pb2

from gateway import hydration, passwords
from gateway.auth import Me, address_of, require_json
from gateway.backends import Backends, Here
from gateway.problems import BadRequest, TooLarge, UnsupportedMediaType, responses
from gateway.schemas import InId, PostPage, SignUp, UserProfile, UserSummary
from mesh.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from mesh.ids import now_ms
from stores.events.port import Event, Topic
from stores.users.port import User

router = APIRouter(tags=["users"])
Action = events_pb2.GraphEvent.Action


@router.post(
    "/user",
    status_code=201,
    dependencies=[Depends(require_json)],
    responses=responses(AlreadyExists, BadRequest, TooLarge, UnsupportedMediaType, public=True),
)
async def sign_up(request: Request, here: Here, wanted: SignUp) -> UserSummary:
    """Registers a user."""
    await here.limits.login(address_of(request))
    user = User(
        here.ids.next(),
        wanted.username,
        wanted.display_name or wanted.username,
        datetime.now(UTC),
    )
    await here.users.create(user, await passwords.hash_password(wanted.password))
    return UserSummary(user_id=user.user_id, username=user.username, display_name=user.display_name)


@router.get("/user/{user_id}", responses=responses(NotFound))
async def get_user(here: Here, me: Me, user_id: InId) -> UserProfile:
    """A user's profile."""
    user = await _existing(here, user_id)
    followers, following, relation = await asyncio.gather(
        here.graph.follower_counts([user_id]),
        here.graph.following_count(user_id),
        here.graph.relation(me, user_id),
    )
    return UserProfile(
        user_id=user.user_id,
        username=user.username,
        display_name=user.display_name,
        follower_count=followers[user_id],
        following_count=following,
        following=relation.following,
        blocking=relation.blocking,
        created_at=user.created_at,
    )


@router.get("/user/{user_id}/posts", responses=responses(NotFound))
async def get_posts_of_user(
    here: Here,
    me: Me,
    user_id: InId,
    limit: Annotated[int, Query(ge=1, le=50)] = 20,
    cursor: Annotated[InId | None, Query(description="`next_cursor` of the page before.")] = None,
) -> PostPage:
    """A user's posts, newest first; none to those whom they block, or who block them."""
    await _existing(here, user_id)
    relation = await here.graph.relation(me, user_id)
    if relation.blocking or relation.blocked_by:
        return PostPage(items=[], next_cursor=None)
    found = await here.posts.by_author(user_id, cursor, limit + 1)
    page = found[:limit]
    hydrated = await hydration.hydrate(here, me, [post.post_id for post in page], limit)
    return PostPage(
        items=[hydration.present(post) for post in hydrated.posts],
        next_cursor=str(page[-1].post_id) if len(found) > limit else None,
    )


@router.put(
    "/user/{user_id}/follow", status_code=204, responses=responses(NotFound, PermissionDenied)
)
async def follow(here: Here, me: Me, user_id: InId) -> Response:
    """Follows the user. 403 when one of you blocks the other, 429 at the limit of followed."""
    event = await _event(here, me, user_id, Action.ACTION_FOLLOWED)
    await here.graph.follow(me, user_id, here.settings.max_following, event)
    return Response(status_code=204)


@router.delete("/user/{user_id}/follow", status_code=204, responses=responses(NotFound))
async def unfollow(here: Here, me: Me, user_id: InId) -> Response:
    """Follows the user no longer."""
    event = await _event(here, me, user_id, Action.ACTION_UNFOLLOWED)
    await here.graph.unfollow(me, user_id, event)
    return Response(status_code=204)


@router.put("/user/{user_id}/block", status_code=204, responses=responses(NotFound))
async def block(here: Here, me: Me, user_id: InId) -> Response:
    """Blocks the user: neither sees the other's posts, and neither follows the other any more."""
    event = await _event(here, me, user_id, Action.ACTION_BLOCKED)
    await here.graph.block(me, user_id, event)
    return Response(status_code=204)


@router.delete("/user/{user_id}/block", status_code=204, responses=responses(NotFound))
async def unblock(here: Here, me: Me, user_id: InId) -> Response:
    """Blocks the user no longer."""
    event = await _event(here, me, user_id, Action.ACTION_UNBLOCKED)
    await here.graph.unblock(me, user_id, event)
    return Response(status_code=204)


async def _existing(here: Backends, user_id: int) -> User:
    found = await here.users.get([user_id])
    if user_id not in found:
        raise NotFound("There is no such user.")
    return found[user_id]


async def _event(here: Backends, me: int, user_id: int, action: Action.ValueType) -> Event:
    """The announcement of a change between two users, who are checked here."""
    if user_id == me:
        raise InvalidArgument("That is yourself.", fields={"user_id": "is your own"})
    await _existing(here, user_id)
    message = events_pb2.GraphEvent(
        action=action, user_id=me, target_id=user_id, occurred_at_ms=now_ms()
    )
    return Event(Topic.GRAPH, me, message)
