"""The outbox as a table, beside the tables whose changes it announces."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from stores.events.codec import encode, new_event_id
from stores.events.port import Event, OutgoingRecord
from stores.outbox.port import OutboxRow
from stores.sql.database import Database, chunks
from stores.sql.tables import outbox


async def append(connection: AsyncConnection, event: Event) -> None:
    """Announces the event when the connection's transaction commits, and only then."""
    await connection.execute(insert(outbox), _row(encode(event, new_event_id())))


class SqlOutbox:
    """`stores.outbox.port.Outbox` in SQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, records: Sequence[OutgoingRecord]) -> None:
        if not records:
            return

        async def add(connection: AsyncConnection) -> None:
            for chunk in chunks(records):
                await connection.execute(insert(outbox), [_row(record) for record in chunk])

        await self._db.write(add)

    async def pending(self, limit: int) -> list[OutboxRow]:
        async with self._db.read() as connection:
            rows = await connection.execute(select(outbox).order_by(outbox.c.row_id).limit(limit))
            return [
                OutboxRow(
                    row_id=row.row_id,
                    record=OutgoingRecord(
                        topic=row.topic,
                        key=row.record_key,
                        value=row.value.encode(),
                        headers=row.headers,
                    ),
                )
                for row in rows
            ]

    async def published(self, row_ids: Sequence[int]) -> None:
        if not row_ids:
            return

        async def remove(connection: AsyncConnection) -> None:
            for chunk in chunks(row_ids):
                await connection.execute(delete(outbox).where(outbox.c.row_id.in_(chunk)))

        await self._db.write(remove)


def _row(record: OutgoingRecord) -> dict[str, Any]:
    return {
        "topic": record.topic,
        "record_key": record.key,
        "value": record.value.decode(),
        "headers": dict(record.headers),
    }
