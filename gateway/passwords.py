"""Passwords: hashed with argon2id, in a thread, because that is slow on purpose."""

import asyncio

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from mesh import telemetry

# OWASP's least recommendation: 19 MiB, two passes.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
# What a login is checked against when there is no such user, so that both take as long.
_NOBODY = _hasher.hash("nobody has this password")


async def hash_password(password: str) -> str:
    """The argon2id hash, with its parameters and salt."""
    with telemetry.span("hash password"):
        return await asyncio.to_thread(_hasher.hash, password)


async def matches(password_hash: str | None, password: str) -> bool:
    """Whether it is the password; takes the same time when there is no hash to check."""
    with telemetry.span("check password"):
        right = await asyncio.to_thread(_verify, password_hash or _NOBODY, password)
    return right and password_hash is not None


def _verify(password_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(password_hash, password)
    except (VerificationError, InvalidHashError):
        return False
