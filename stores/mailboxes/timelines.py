"""Read-through timelines: boxes as they are, and built from the source of truth where missing."""

import asyncio
from collections.abc import Iterable, Sequence
from heapq import nlargest
from typing import Protocol

from mesh import telemetry
from stores.mailboxes.port import CAPACITY, Box, MailboxStore

# Authors whose boxes are read, or built, at a time: bounds memory and how much runs concurrently.
_AUTHORS = 16


class AuthoredPosts(Protocol):
    """The one thing of `stores.posts.port.PostStore` that is needed here."""

    async def newest_ids(self, author_ids: Sequence[int], per_author: int) -> dict[int, list[int]]:
        """The newest post ids of each author, newest first; an entry for every author asked for."""
        ...


class Timelines:
    """Mailboxes and authors' boxes that are always there. Raises `mesh.errors.Unavailable`.

    A missing box is built in three steps whose order loses no post: it is opened for pushes, then
    the source of truth is read, then what was read is added. A post is pushed after it was
    committed, so one that the read did not see yet is pushed after the box was opened, and stays in
    it. Two who build the same box at once add the same posts twice, which changes nothing.

    Args:
        mailboxes: Where the boxes are.
        posts: The source of truth.
    """

    def __init__(self, mailboxes: MailboxStore, posts: AuthoredPosts) -> None:
        self._mailboxes = mailboxes
        self._posts = posts

    async def recent_by_authors(
        self, author_ids: Sequence[int], per_author: int
    ) -> dict[int, list[int]]:
        """The newest post ids of each author, newest first, at most 800; an entry for every one."""
        recent: dict[int, list[int]] = {}
        for start in range(0, len(author_ids), _AUTHORS):
            recent |= await self._recent(author_ids[start : start + _AUTHORS], per_author)
        return recent

    async def mailbox(
        self, reader_id: int, following_pushed_author_ids: Sequence[int], limit: int
    ) -> list[int]:
        """The newest post ids of the reader's mailbox, newest first.

        Args:
            reader_id: Whose mailbox.
            following_pushed_author_ids: Followed authors whose posts are pushed; what a missing
                mailbox is built from.
            limit: At most this many.
        """
        box = Box("mailbox", reader_id)
        [post_ids] = await self._mailboxes.newest([box], limit)
        telemetry.annotate({"feed.mailbox.hit": post_ids is not None})
        if post_ids is not None:
            return post_ids
        await self._mailboxes.begin_build(box)
        newest = await self._newest_of(following_pushed_author_ids)
        await self._mailboxes.finish_build(box, newest)
        return newest[:limit]

    async def _newest_of(self, author_ids: Sequence[int]) -> list[int]:
        newest: list[int] = []
        for start in range(0, len(author_ids), _AUTHORS):
            recent = await self._recent(author_ids[start : start + _AUTHORS], CAPACITY)
            newest = _merge([newest, *recent.values()])
        return newest

    async def _recent(self, author_ids: Sequence[int], per_author: int) -> dict[int, list[int]]:
        boxes = [Box("authored", author_id) for author_id in author_ids]
        found = await self._mailboxes.newest(boxes, per_author)
        pairs = zip(boxes, found, strict=True)
        built = await self._build([box for box, post_ids in pairs if post_ids is None])
        return {
            box.owner_id: built[box.owner_id][:per_author] if post_ids is None else post_ids
            for box, post_ids in zip(boxes, found, strict=True)
        }

    async def _build(self, boxes: Sequence[Box]) -> dict[int, list[int]]:
        """Builds authors' boxes, as deep as a box can be, whatever the reader asked for."""
        if not boxes:
            return {}
        await asyncio.gather(*(self._mailboxes.begin_build(box) for box in boxes))
        newest = await self._posts.newest_ids([box.owner_id for box in boxes], CAPACITY)
        await asyncio.gather(
            *(self._mailboxes.finish_build(box, newest[box.owner_id]) for box in boxes)
        )
        return newest


def _merge(lists: Iterable[Sequence[int]]) -> list[int]:
    return nlargest(CAPACITY, {post_id for post_ids in lists for post_id in post_ids})
