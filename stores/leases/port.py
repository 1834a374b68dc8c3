"""Leases: a name held by one process at a time, until it expires."""

from typing import Protocol


class Leases(Protocol):
    """Raises `mesh.errors.Unavailable` when the source of truth cannot be reached."""

    async def acquire(self, name: str, holder: str, ttl_s: float) -> bool:
        """Takes or renews the lease for `ttl_s` seconds; False while another holds it."""
        ...

    async def release(self, name: str, holder: str) -> None:
        """Gives the lease back; without effect when `holder` no longer has it."""
        ...
