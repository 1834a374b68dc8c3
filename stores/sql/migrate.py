"""Brings a database's schema up to date."""

import asyncio
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, NullPool, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

from mesh.errors import Unavailable
from stores.sql.database import is_sqlite

_WAIT_S = 60


async def migrate(url: str) -> None:
    """Runs Alembic to the newest revision; makes a SQLite file and its folder where missing.

    Processes that start at once wait for each other: the first migrates, the others find it done.
    Raises `Unavailable` when the database cannot be reached, or is held for a minute.
    """
    # In a thread with a loop of its own, because Alembic's own work is not asynchronous.
    await asyncio.to_thread(asyncio.run, _migrate(make_url(url)))


async def _migrate(url: URL) -> None:
    engine = create_async_engine(
        url,
        poolclass=NullPool,
        # Migrations of SQLite are transactions of ours, not of sqlite3.
        connect_args={"isolation_level": None, "timeout": _WAIT_S} if is_sqlite(url) else {},
    )
    try:
        if is_sqlite(url) and url.database:
            Path(url.database).parent.mkdir(parents=True, exist_ok=True)
        async with engine.connect() as connection:
            await _wait_for_turn(connection)
            await connection.run_sync(_upgrade)
            await connection.commit()
    except (OperationalError, OSError) as error:
        raise Unavailable("The database does not answer.") from error
    finally:
        await engine.dispose()


async def _wait_for_turn(connection: AsyncConnection) -> None:
    if connection.dialect.name == "sqlite":
        await connection.exec_driver_sql("PRAGMA journal_mode = WAL")
        await connection.exec_driver_sql("BEGIN IMMEDIATE")
        return
    turn = text("SELECT GET_LOCK('feedmesh_migrate', :seconds)")
    if await connection.scalar(turn, {"seconds": _WAIT_S}) != 1:
        raise Unavailable("Another process is still migrating the database.")


def _upgrade(connection: Connection) -> None:
    command.upgrade(alembic_config(connection), "head")


def alembic_config(connection: Connection) -> Config:
    """Alembic's configuration, working on the given connection."""
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config
