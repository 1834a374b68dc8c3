"""Leases as rows."""

from collections.abc import Callable

from sqlalchemy import delete, or_, update

from mesh.ids import now_ms
from stores.sql.database import Database, insert_ignore
from stores.sql.tables import leases


class SqlLeases:
    """`stores.leases.port.Leases` in SQL.

    A lease expires by the clock of whoever asks. Clocks that differ by more than the time between
    two renewals can therefore put two holders side by side for a while; who cannot have that must
    fence what it does, as `mesh.worker_id` does.

    Args:
        db: Where the rows are.
        clock_ms: Milliseconds since the epoch.
    """

    def __init__(self, db: Database, clock_ms: Callable[[], int] = now_ms) -> None:
        self._db = db
        self._clock_ms = clock_ms

    async def acquire(self, name: str, holder: str, ttl_s: float) -> bool:
        async with self._db.write() as connection:
            # Read here, because waiting for the transaction may have taken seconds.
            now = self._clock_ms()
            values = {"holder": holder, "expires_at_ms": now + int(ttl_s * 1000)}
            free = or_(leases.c.holder == holder, leases.c.expires_at_ms < now)
            taken = await connection.execute(
                update(leases).where(leases.c.name == name, free).values(values)
            )
            if taken.rowcount == 0:
                taken = await connection.execute(insert_ignore(leases), {"name": name, **values})
            return taken.rowcount == 1

    async def release(self, name: str, holder: str) -> None:
        async with self._db.write() as connection:
            await connection.execute(
                delete(leases).where(leases.c.name == name, leases.c.holder == holder)
            )
