"""Users: who there is, and how they log in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class User:
    """A person. `username` is unique without regard to case."""

    user_id: int
    username: str
    display_name: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user with the argon2 hash of their password; None for one without a password."""

    user: User
    password_hash: str | None


class UserStore(Protocol):
    """Raises `mesh.errors.Unavailable` when the source of truth cannot be reached."""

    async def create(self, user: User, password_hash: str | None) -> None:
        """Adds the user. Raises `AlreadyExists` when the username is taken."""
        ...

    async def create_many(self, users: Sequence[Credentials]) -> None:
        """Adds users in bulk, passing over those whose `user_id` is there already.

        Raises `AlreadyExists` when a username is taken by another user; then none is added.
        """
        ...

    async def get(self, user_ids: Sequence[int]) -> dict[int, User]:
        """The users that exist, by id."""
        ...

    async def credentials(self, username: str) -> Credentials | None:
        """The user with this name, in any case, for login."""
        ...

    async def credentials_page(self, after: int, limit: int) -> list[Credentials]:
        """As `page`, with the hashes of passwords: for moving an installation."""
        ...

    async def page(self, after: int, limit: int) -> list[User]:
        """Users with an id above `after`, in the order of ids."""
        ...
