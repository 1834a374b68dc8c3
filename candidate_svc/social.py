"""Followed authors' posts: what was pushed to the reader's mailbox, and what is pulled at read."""

import asyncio
from collections.abc import Sequence

from feed.v1.common_pb2 import CANDIDATE_SOURCE_SOCIAL, Reader

from candidate_svc.rules import Candidate, newest, ranked
from mesh import deadlines
from mesh.degrade import best_effort
from stores.mailboxes.timelines import Timelines
from stores.posts.port import PostStore

# Without mailboxes, so many posts of each followed author are considered.
_FALLBACK_PER_AUTHOR = 20
_TIMEOUT_S = 1.0


class Social:
    """Retrieval of followed authors' posts.

    Args:
        timelines: Readers' mailboxes and authors' own lists.
        posts: Knows the posts' authors, and their newest posts when the mailboxes are away.
    """

    def __init__(self, timelines: Timelines, posts: PostStore) -> None:
        self._timelines = timelines
        self._posts = posts

    async def retrieve(self, reader: Reader, limit: int, degraded: list[str]) -> list[Candidate]:
        """The newest posts, newest first; author 0 where a post is gone.

        Without "mailboxes" the source of truth gives a shorter list; without "authors" there is
        none, as nobody could tell whose the posts are.
        """
        post_ids = await best_effort(
            self._from_boxes(reader, limit),
            None,
            backend="mailboxes",
            degraded=degraded,
            # So that the source of truth has the other half of what is left.
            timeout_s=deadlines.remaining(_TIMEOUT_S) / 2,
        )
        authored = await best_effort(
            self._from_truth(reader, limit) if post_ids is None else self._with_authors(post_ids),
            None,
            backend="authors",
            degraded=degraded,
            timeout_s=deadlines.remaining(_TIMEOUT_S) * 0.8,
        )
        if authored is None:
            return []
        return ranked(*authored, CANDIDATE_SOURCE_SOCIAL)

    async def _from_boxes(self, reader: Reader, limit: int) -> list[int]:
        pulled_ids = list(reader.pulled_author_ids)
        pushed_ids = list(set(reader.following_ids).difference(pulled_ids))
        pushed, pulled = await asyncio.gather(
            self._timelines.mailbox(reader.user_id, pushed_ids, limit),
            self._timelines.recent_by_authors(pulled_ids, limit),
        )
        return newest([pushed, *pulled.values()], limit)

    async def _with_authors(self, post_ids: Sequence[int]) -> tuple[Sequence[int], dict[int, int]]:
        return post_ids, await self._posts.authors(post_ids) if post_ids else {}

    async def _from_truth(self, reader: Reader, limit: int) -> tuple[Sequence[int], dict[int, int]]:
        if not reader.following_ids:
            return [], {}
        by_author = await self._posts.newest_ids(reader.following_ids, _FALLBACK_PER_AUTHOR)
        authors = {
            post_id: author for author, post_ids in by_author.items() for post_id in post_ids
        }
        return newest(by_author.values(), limit), authors
