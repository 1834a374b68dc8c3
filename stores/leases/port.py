"""Leases: a name held by one process at a time, until it expires."""

from typing import Protocol


class Leases(Protocol):
    """Raises `mesh.errors.Unavailable` when the source of truth cannot be reached."""

    async def acquire(
        self, name: str, holder: str, ttl_s: float, now_ms: int | None = None
    ) -> bool:
        """Takes or renews the lease for `ttl_s` seconds; False while another holds it.

        Args:
            name: What is leased.
            holder: Who asks.
            ttl_s: Counted from a moment within the call.
            now_ms: Milliseconds since the epoch by the holder's clock, for leases that fence times
                of that clock; else the source of truth's clock counts, which is one for all.
        """
        ...

    async def release(self, name: str, holder: str) -> None:
        """Gives the lease back; without effect when `holder` no longer has it."""
        ...
