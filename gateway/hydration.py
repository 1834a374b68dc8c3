"""Posts as readers see them: one way for all endpoints."""

from collections.abc import Sequence
from datetime import UTC
from typing import TYPE_CHECKING

from feed.v1 import hydrator_pb2

from gateway.backends import Backends
from gateway.schemas import Media, Post, UserSummary
from mesh.channels import call
from mesh.errors import NotFound

if TYPE_CHECKING:
    from feed.v1 import common_pb2

_TIMEOUT_S = 2.0


async def hydrate(
    here: Backends, reader_id: int, post_ids: Sequence[int], limit: int
) -> hydrator_pb2.HydratePostsResponse:
    """The first `limit` of the posts that exist, in the order given."""
    if not post_ids:
        return hydrator_pb2.HydratePostsResponse()
    request = hydrator_pb2.HydratePostsRequest(reader_id=reader_id, post_ids=post_ids, limit=limit)
    return await call(here.services.hydrator.HydratePosts, request, timeout=_TIMEOUT_S)


async def visible_author(here: Backends, reader_id: int, post_id: int) -> int:
    """The post's author. Raises `NotFound` also when one of the two blocks the other."""
    author_id = (await here.posts.authors([post_id])).get(post_id)
    if author_id is not None:
        if author_id == reader_id:
            return author_id
        relation = await here.graph.relation(reader_id, author_id)
        if not (relation.blocking or relation.blocked_by):
            return author_id
    raise NotFound("There is no such post.")


def present(post: "common_pb2.Post") -> Post:
    """The post in the form of the REST interface."""
    return Post(
        post_id=post.post_id,
        author=UserSummary(
            user_id=post.author.user_id,
            username=post.author.username,
            display_name=post.author.display_name,
        ),
        text=post.text,
        tags=list(post.tags),
        media=[
            Media(
                url=each.url,
                content_type=each.content_type,
                width=each.width or None,
                height=each.height or None,
            )
            for each in post.media
        ],
        like_count=post.like_count,
        liked=post.liked,
        created_at=post.created_at.ToDatetime(UTC),
    )
