"""Posts: publishing, reading, deleting."""

import asyncio
from collections.abc import Awaitable
from datetime import UTC
from typing import Annotated

from fastapi import APIRouter, Header, Request, Response
from feed.v1 import common_pb2, events_pb2

from gateway import drafts, hydration, uploads
from gateway.auth import Me
from gateway.backends import Backends, Here
from gateway.drafts import Draft
from gateway.problems import BadRequest, TooLarge, UnsupportedMediaType, responses
from gateway.schemas import InId, Post, utc
from mesh.degrade import best_effort
from mesh.errors import FailedPrecondition, FeedError, NotFound, PermissionDenied, Unavailable
from mesh.ids import created_ms, now_ms
from stores.events.port import Event, Topic
from stores.posts.port import IdempotencyKey, StoredMedia, StoredPost

router = APIRouter(tags=["posts"])
Action = events_pb2.PostEvent.Action
_CLEAN_UP_TIMEOUT_S = 5.0


@router.post(
    "/post",
    status_code=201,
    openapi_extra=drafts.OPENAPI,
    responses=responses(BadRequest, FailedPrecondition, TooLarge, UnsupportedMediaType),
)
async def publish(
    request: Request,
    here: Here,
    me: Me,
    idempotency_key: Annotated[
        str | None,
        Header(
            min_length=1,
            max_length=200,
            description="A repeat with the same key and content answers as the first did; "
            "with other content it is a 409.",
        ),
    ] = None,
) -> Post:
    """Publishes a post, with up to four images or videos, sent along or uploaded before."""
    draft = await drafts.read(request)
    key = IdempotencyKey(idempotency_key, draft.fingerprint()) if idempotency_key else None
    published = await here.posts.find_idempotent(me, key) if key else None
    return await _as_new(here, published or await _publish(here, me, draft, key))


@router.get("/post/{post_id}", responses=responses(NotFound))
async def get_post(here: Here, me: Me, post_id: InId) -> Post:
    """A post; 404 also when you block its author, or they you."""
    await hydration.visible_author(here, me, post_id)
    found = await hydration.hydrate(here, me, [post_id], 1)
    if not found.posts:
        raise NotFound("There is no such post.")
    return hydration.present(found.posts[0])


@router.delete("/post/{post_id}", status_code=204, responses=responses(NotFound, PermissionDenied))
async def delete_post(here: Here, me: Me, post_id: InId) -> Response:
    """Deletes your post, everywhere and at once."""
    deleted = await here.posts.delete(post_id, me, _event(Action.ACTION_DELETED, me, post_id))
    await _discard(here, deleted.media)
    return Response(status_code=204)


async def _publish(here: Backends, me: int, draft: Draft, key: IdempotencyKey | None) -> StoredPost:
    post_id = here.ids.next()
    ready = [
        *[
            uploads.by_gateway(here, post_id, await uploads.prepared(each.data, each.declared_type))
            for each in draft.media
        ],
        *await uploads.uploaded(here, me, post_id, draft.media_keys),
    ]
    media = tuple(each.stored for each in ready)
    post = StoredPost(post_id, me, draft.text, draft.tags, media, utc(created_ms(post_id)))
    try:
        await asyncio.gather(*(each.store() for each in ready))
        event = _event(Action.ACTION_CREATED, me, post_id)
        published = await here.posts.create(post, event, key)
    except FeedError as error:
        # After Unavailable nobody knows whether the post is there, and it must keep its media.
        if not isinstance(error, Unavailable):
            await _discard(here, media)
        raise
    if published.post_id != post_id:
        # The same request came twice at once, and the other one was first.
        await _discard(here, media)
    if here.uploads is not None and draft.media_keys:
        await _cleaned_up(here.uploads.discard(draft.media_keys))
    return published


async def _discard(here: Backends, media: tuple[StoredMedia, ...]) -> None:
    """Deletes objects that no post shows."""
    if media:
        await _cleaned_up(here.media.delete([each.key for each in media]))


async def _cleaned_up(deletion: Awaitable[None]) -> None:
    """What stays behind costs room, nothing else, until the media worker finds it."""
    await best_effort(deletion, None, backend="media", degraded=[], timeout_s=_CLEAN_UP_TIMEOUT_S)


async def _as_new(here: Backends, post: StoredPost) -> Post:
    """The post as its author sees it when it is published, also when that is asked for again."""
    author = (await here.users.get([post.author_id]))[post.author_id]
    message = common_pb2.Post(
        post_id=post.post_id,
        author=common_pb2.Author(
            user_id=author.user_id, username=author.username, display_name=author.display_name
        ),
        text=post.text,
        tags=post.tags,
        media=[
            common_pb2.Media(
                url=here.media.url(each.key),
                content_type=each.content_type,
                width=each.width,
                height=each.height,
            )
            for each in post.media
        ],
    )
    message.created_at.FromDatetime(post.created_at.astimezone(UTC))
    return hydration.present(message)


def _event(action: Action.ValueType, me: int, post_id: int) -> Event:
    message = events_pb2.PostEvent(
        action=action, post_id=post_id, author_id=me, occurred_at_ms=now_ms()
    )
    return Event(Topic.POSTS, me, message)
