"""Whether the database has the tables that this code expects."""

import asyncio
import logging
from pathlib import Path

from opentelemetry.instrumentation.utils import suppress_instrumentation
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from mesh.errors import Unavailable
from stores.sql.database import Database

_log = logging.getLogger(__name__)
_POLL_S = 1.0
# A migration's file is called by its revision, and revisions by numbers that rise.
_VERSIONS = Path(__file__).parent / "migrations" / "versions"


async def until_migrated(database: Database) -> None:
    """Returns when the schema is the one of this code, or a newer one.

    A process that comes before the migration, or before the database, waits rather than fails.
    """
    wanted = newest_revision()
    said = ""
    while (found := await _revision(database)) < wanted:
        waiting = f"the database has schema {found or 'none'}; waiting for {wanted}"
        if waiting != said:
            _log.warning(waiting)
            said = waiting
        await asyncio.sleep(_POLL_S)


def newest_revision() -> str:
    """The schema that this code expects, e.g. "0002"."""
    return max(file.name[:4] for file in _VERSIONS.glob("0*.py"))


async def _revision(database: Database) -> str:
    """The database's schema; empty while it has none or cannot be reached."""
    try:
        # No trace is of these questions.
        with suppress_instrumentation():
            async with database.read() as connection:
                found = await connection.scalar(text("SELECT version_num FROM alembic_version"))
    except (DBAPIError, Unavailable) as error:
        _log.debug("no schema: %s", error)
        return ""
    return str(found or "")
