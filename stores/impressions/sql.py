"""The long memory of impressions in SQL."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Row, delete, func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from stores.impressions.port import Impression, Seen
from stores.sql.database import Database, beyond, chunks, insert_many
from stores.sql.tables import impressions

# Rows forgotten in one transaction, so that a purge holds up nobody's write.
_PURGE = 5000


class SqlImpressionStore:
    """`stores.impressions.port.ImpressionStore` in SQL."""

    reads_the_log = False

    def __init__(self, db: Database) -> None:
        self._db = db

    async def record(self, impressions: Sequence[Impression]) -> None:
        for chunk in chunks(impressions):
            await self._add([asdict(impression) for impression in chunk])

    async def _add(self, rows: list[dict[str, Any]]) -> None:
        async def add(connection: AsyncConnection) -> None:
            await insert_many(connection, impressions, rows)

        await self._db.write(add)

    async def seen(self, user_id: int, since_ms: int, limit: int) -> list[Seen]:
        last = func.max(impressions.c.seen_at_ms)
        query = (
            select(impressions.c.post_id, func.count(), last)
            .where(impressions.c.user_id == user_id, impressions.c.seen_at_ms >= since_ms)
            .group_by(impressions.c.post_id)
            .order_by(last.desc(), impressions.c.post_id.desc())
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [Seen(*row) for row in await connection.execute(query)]

    async def dwelt(
        self, user_id: int, min_dwell_ms: int, since_ms: int, limit: int
    ) -> list[Impression]:
        query = (
            select(impressions)
            .where(
                impressions.c.user_id == user_id,
                impressions.c.seen_at_ms >= since_ms,
                impressions.c.dwell_ms >= min_dwell_ms,
            )
            .order_by(impressions.c.seen_at_ms.desc(), impressions.c.post_id.desc())
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [_impression(row) for row in await connection.execute(query)]

    async def page(self, after: tuple[int, str], limit: int) -> list[Impression]:
        query = (
            select(impressions)
            .where(beyond(impressions.c.seen_at_ms, impressions.c.event_id, after))
            .order_by(impressions.c.seen_at_ms, impressions.c.event_id)
            .limit(limit)
        )
        async with self._db.read() as connection:
            return [_impression(row) for row in await connection.execute(query)]

    async def purge(self, before_ms: int) -> int:
        purged = 0
        while removed := await self._purge_some(before_ms):
            purged += removed
        return purged

    async def _purge_some(self, before_ms: int) -> int:
        seen_at = impressions.c.seen_at_ms
        oldest = select(seen_at).where(seen_at < before_ms).order_by(seen_at)

        async def purge(connection: AsyncConnection) -> int:
            last = await connection.scalar(oldest.offset(_PURGE - 1).limit(1))
            until = before_ms - 1 if last is None else last
            removed = await connection.execute(delete(impressions).where(seen_at <= until))
            return removed.rowcount

        return await self._db.write(purge)


def _impression(row: Row[Any]) -> Impression:
    return Impression(**row._mapping)
