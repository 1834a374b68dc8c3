"""Mailboxes: capped lists of post ids, newest first, one a reader and one an author.

A box exists once it was built; pushes reach only boxes that exist, so a reader who is away costs
nothing. A box that was not used for 30 days expires and is built anew at the next read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

CAPACITY = 800
IDLE_DAYS = 30


@dataclass(frozen=True, slots=True)
class Box:
    """`mailbox`: posts for a reader. `authored`: an author's own recent posts."""

    kind: Literal["mailbox", "authored"]
    owner_id: int


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a fan-out came: every follower up to `after` is done."""

    after: int


class MailboxStore(Protocol):
    """Raises `mesh.errors.Unavailable` when it cannot be reached. All writes may be repeated."""

    async def newest(self, boxes: Sequence[Box], limit: int) -> list[list[int] | None]:
        """The newest ids of each box, newest first; None where the box is not built.

        Reading keeps the box from expiring.
        """
        ...

    async def begin_build(self, box: Box) -> None:
        """Opens the box for pushes, so that none is lost while it is being built.

        To be called before the contents are read from the source of truth.
        """
        ...

    async def finish_build(self, box: Box, post_ids: Sequence[int]) -> None:
        """Adds the contents and makes the box readable."""
        ...

    async def push(self, boxes: Sequence[Box], post_ids: Sequence[int]) -> int:
        """Adds the ids to the boxes that exist, keeping the newest 800; returns how many exist."""
        ...

    async def remove(self, boxes: Sequence[Box], post_ids: Sequence[int]) -> None:
        """Takes the ids out of the boxes."""
        ...

    async def progress(self, task: str) -> Progress | None:
        """Where a fan-out stopped, by the task's name; None when it never began or is finished."""
        ...

    async def save_progress(self, task: str, progress: Progress | None) -> None:
        """Keeps the progress for a day; None forgets it."""
        ...
