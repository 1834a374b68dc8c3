"""Leases as rows."""

from sqlalchemy import ColumnElement, delete, literal, literal_column, or_, update
from sqlalchemy.ext.asyncio import AsyncConnection

from stores.sql.database import Database, insert_ignore
from stores.sql.tables import leases

_SQLITE_NOW_MS = "CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)"
_TIDB_NOW_MS = "CAST(UNIX_TIMESTAMP(NOW(3)) * 1000 AS SIGNED)"


class SqlLeases:
    """`stores.leases.port.Leases` in SQL.

    A free lease is taken by changing its row where it is free, or by adding it where there is none:
    either succeeds for one of those who try at once, as both wait for each other's row.
    """

    def __init__(self, db: Database) -> None:
        self._db = db
        self._now_ms = _SQLITE_NOW_MS if db.is_sqlite else _TIDB_NOW_MS

    async def acquire(
        self, name: str, holder: str, ttl_s: float, now_ms: int | None = None
    ) -> bool:
        now: ColumnElement[int] = (
            literal_column(self._now_ms) if now_ms is None else literal(now_ms)
        )
        values = {"holder": holder, "expires_at_ms": now + int(ttl_s * 1000)}
        free = or_(leases.c.holder == holder, leases.c.expires_at_ms < now)

        async def take(connection: AsyncConnection) -> bool:
            taken = await connection.execute(
                update(leases).where(leases.c.name == name, free).values(values)
            )
            if taken.rowcount == 0:
                taken = await connection.execute(insert_ignore(leases).values(name=name, **values))
            return taken.rowcount == 1

        return await self._db.write(take)

    async def release(self, name: str, holder: str) -> None:
        async def give_back(connection: AsyncConnection) -> None:
            await connection.execute(
                delete(leases).where(leases.c.name == name, leases.c.holder == holder)
            )

        await self._db.write(give_back)
