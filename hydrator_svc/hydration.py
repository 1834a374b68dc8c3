"""Post ids become posts as one reader sees them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from feed.v1.common_pb2 import Author, Media, Post

from mesh import deadlines
from mesh.errors import Unavailable
from stores.media.port import MediaStore
from stores.posts.port import PostStore, StoredPost
from stores.users.port import User, UserStore

_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Page:
    """Hydrated posts, and how many of the ids they used up, missing ones included."""

    posts: list[Post]
    consumed: int


@dataclass(frozen=True, slots=True)
class _Rows:
    """What the source of truth says of some posts."""

    posts: Mapping[int, StoredPost]
    users: Mapping[int, User]
    liked: set[int]


class Hydration:
    """Reads posts with all that is shown of them.

    Args:
        posts: Posts and likes.
        users: Their authors.
        media: Knows the media's URLs.
    """

    def __init__(self, posts: PostStore, users: UserStore, media: MediaStore) -> None:
        self._posts = posts
        self._users = users
        self._media = media

    async def page(
        self,
        post_ids: Sequence[int],
        limit: int,
        *,
        reader_id: int = 0,
        author_ids: Sequence[int] = (),
    ) -> Page:
        """The first `limit` posts that exist, in the order given; a missing one gives its place up.

        Args:
            post_ids: In the order wanted.
            limit: Posts on the page.
            reader_id: Whose `liked` is told; 0 for nobody's.
            author_ids: The posts' authors, where known: they are then read beside the posts.

        Raises:
            Unavailable: The source of truth is away or too slow.
        """
        posts: list[Post] = []
        consumed = 0
        try:
            async with asyncio.timeout(deadlines.remaining(_TIMEOUT_S)):
                while len(posts) < limit and consumed < len(post_ids):
                    upto = consumed + limit - len(posts)
                    wanted = post_ids[consumed:upto]
                    rows = await self._rows(wanted, reader_id, author_ids[consumed:upto])
                    posts += self._existing(wanted, rows)
                    consumed += len(wanted)
        except TimeoutError:
            raise Unavailable("the source of truth does not answer in time") from None
        return Page(posts, consumed)

    async def _rows(
        self, post_ids: Sequence[int], reader_id: int, author_ids: Sequence[int]
    ) -> _Rows:
        posts, users, liked = await asyncio.gather(
            self._posts.get(post_ids),
            self._authors(set(author_ids) - {0}),
            self._liked(reader_id, post_ids),
        )
        unknown = {post.author_id for post in posts.values()} - set(author_ids)
        return _Rows(posts, users | await self._authors(unknown), liked)

    async def _authors(self, user_ids: set[int]) -> dict[int, User]:
        return await self._users.get(sorted(user_ids)) if user_ids else {}

    async def _liked(self, reader_id: int, post_ids: Sequence[int]) -> set[int]:
        return await self._posts.liked(reader_id, post_ids) if reader_id else set()

    def _existing(self, post_ids: Sequence[int], rows: _Rows) -> list[Post]:
        """A post whose author is gone is gone too."""
        return [
            self._message(post, author, post_id in rows.liked)
            for post_id in post_ids
            if (post := rows.posts.get(post_id)) and (author := rows.users.get(post.author_id))
        ]

    def _message(self, post: StoredPost, author: User, liked: bool) -> Post:
        message = Post(
            post_id=post.post_id,
            author=Author(
                user_id=author.user_id, username=author.username, display_name=author.display_name
            ),
            text=post.text,
            tags=post.tags,
            media=[
                Media(
                    url=self._media.url(each.key),
                    content_type=each.content_type,
                    width=each.width,
                    height=each.height,
                )
                for each in post.media
            ],
            like_count=post.like_count,
            liked=liked,
        )
        message.created_at.FromDatetime(post.created_at)
        return message
