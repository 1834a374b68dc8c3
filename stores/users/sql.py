"""Users in SQL."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import AlreadyExists
from stores.sql.database import Database, chunks
from stores.sql.tables import users
from stores.users.port import Credentials, User

_BULK_TIMEOUT_S = 60.0


class SqlUserStore:
    """`stores.users.port.UserStore` in SQL."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def create(self, user: User, password_hash: str | None) -> None:
        async def add(connection: AsyncConnection) -> None:
            await connection.execute(insert(users), _row(Credentials(user, password_hash)))

        try:
            await self._db.write(add)
        except IntegrityError as error:
            raise _taken(user.username) from error

    async def create_many(self, users: Sequence[Credentials]) -> None:
        """As the port says; the error's field `username` is the name that is taken."""
        by_id = {credentials.user.user_id: credentials for credentials in users}

        async def add_all(connection: AsyncConnection) -> None:
            for chunk in chunks(list(by_id.values())):
                await _add(connection, chunk)

        # One transaction, because either all or none are added.
        await self._db.write(add_all, _BULK_TIMEOUT_S)

    async def get(self, user_ids: Sequence[int]) -> dict[int, User]:
        found: dict[int, User] = {}
        async with self._db.read() as connection:
            for chunk in chunks(user_ids):
                rows = await connection.execute(select(users).where(users.c.user_id.in_(chunk)))
                found.update((row.user_id, _user(row)) for row in rows)
        return found

    async def credentials(self, username: str) -> Credentials | None:
        query = select(users).where(users.c.username_key == username.casefold())
        async with self._db.read() as connection:
            row = (await connection.execute(query)).one_or_none()
        return Credentials(_user(row), row.password_hash) if row else None

    async def credentials_page(self, after: int, limit: int) -> list[Credentials]:
        query = select(users).where(users.c.user_id > after).order_by(users.c.user_id).limit(limit)
        async with self._db.read() as connection:
            rows = await connection.execute(query)
            return [Credentials(_user(row), row.password_hash) for row in rows]

    async def page(self, after: int, limit: int) -> list[User]:
        return [credentials.user for credentials in await self.credentials_page(after, limit)]


async def _add(connection: AsyncConnection, chunk: Sequence[Credentials]) -> None:
    known = users.c.user_id.in_([credentials.user.user_id for credentials in chunk])
    present = set(await connection.scalars(select(users.c.user_id).where(known)))
    rows = [_row(added) for added in chunk if added.user.user_id not in present]
    names = {row["username_key"] for row in rows}
    used = users.c.username_key.in_(names)
    taken = await connection.scalar(select(users.c.username).where(used).limit(1))
    if taken is not None:
        raise _taken(taken)
    if rows:
        try:
            await connection.execute(insert(users), rows)
        except IntegrityError as error:
            raise _taken(None) from error


def _taken(username: str | None) -> AlreadyExists:
    if username is None:
        return AlreadyExists("Two of the users have the same username.")
    # The name is a field only: details go into spans.
    return AlreadyExists("This username is taken.", fields={"username": username})


def _row(credentials: Credentials) -> dict[str, Any]:
    user = credentials.user
    return {
        "user_id": user.user_id,
        "username": user.username,
        "username_key": user.username.casefold(),
        "display_name": user.display_name,
        "password_hash": credentials.password_hash,
        "created_at": user.created_at,
    }


def _user(row: Row[Any]) -> User:
    return User(row.user_id, row.username, row.display_name, row.created_at)
