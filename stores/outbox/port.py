"""The outbox: events written in the same transaction as the change they announce."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from stores.events.port import OutgoingRecord


@dataclass(frozen=True, slots=True)
class OutboxRow:
    """An event waiting for the relay; `row_id` grows with time."""

    row_id: int
    record: OutgoingRecord


class Outbox(Protocol):
    """Raises `mesh.errors.Unavailable` when the source of truth cannot be reached."""

    async def add(self, records: Sequence[OutgoingRecord]) -> None:
        """Appends events on their own, with no other change."""
        ...

    async def pending(self, limit: int) -> list[OutboxRow]:
        """The oldest rows not yet published."""
        ...

    async def published(self, row_ids: Sequence[int]) -> None:
        """Removes rows that the event log has acknowledged."""
        ...
