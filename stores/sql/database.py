"""How the SQL database is reached, and the few places where the kinds of database differ.

Reading and writing have an engine each. A read is a statement on its own and takes no lock. On
SQLite, writers of one process queue for one connection, so that only processes contend for the
file's write lock, and take that lock first: a transaction that is under way never fails for it.
On TiDB transactions are pessimistic: they lock what they change, see a snapshot of the rest, and
may fail for reasons that go away (`stores.sql.retrying`), so a write is a function that may run
again.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from opentelemetry.instrumentation.utils import suppress_instrumentation
from sqlalchemy import URL, ColumnElement, Insert, Table, and_, event, insert, make_url, or_
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    DisconnectionError,
    InterfaceError,
    InternalError,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from mesh import deadlines
from mesh.errors import InvalidArgument, Unavailable
from mesh.sql_spans import SqlSpans
from stores.sql import retrying

T = TypeVar("T")

TIMEOUT_S = 5.0
# Ids in one IN list, rows in one bulk statement.
CHUNK = 1000
# How long SQLite itself waits for the write lock. It cannot be cancelled meanwhile, so this is
# short, and `write` asks again until its own deadline.
_LOCK_WAIT_MS = 200


class Database:
    """One database, for all stores of a process.

    Args:
        url: sqlite+aiosqlite:///FILE or mysql+aiomysql://…, which is TiDB. SQLite needs a file.

    Attributes:
        is_sqlite: Else it is TiDB.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url)
        self.is_sqlite = is_sqlite(parsed)
        self._reader = _reader(parsed)
        self._writer = _writer(parsed)
        self._reads = SqlSpans(self._reader.sync_engine)
        self._writes = SqlSpans(self._writer.sync_engine)

    @asynccontextmanager
    async def read(self, timeout_s: float = TIMEOUT_S) -> AsyncIterator[AsyncConnection]:
        """A connection to read with; each statement sees what is committed when it runs.

        Raises `Unavailable` when the block takes longer than `timeout_s` or than what is left of
        the request's deadline, or the database is away, and `InvalidArgument` for a value that no
        column can hold.
        """
        with _feed_errors():
            async with asyncio.timeout(deadlines.remaining(timeout_s)), AsyncExitStack() as opened:
                with self._reads.connecting("reader"):
                    connection = await opened.enter_async_context(self._reader.connect())
                yield connection

    async def write(
        self, work: Callable[[AsyncConnection], Awaitable[T]], timeout_s: float = TIMEOUT_S
    ) -> T:
        """Does the work in a transaction, and gives what the work gives once that is committed.

        Args:
            work: Runs again, in a new transaction, when the database could not finish it and has
                certainly kept nothing of it; it must have no effect but through its connection.
            timeout_s: For all attempts together; less where less is left of the request's deadline.

        Raises as `read` does; sqlalchemy's IntegrityError passes, for the store to explain. After
        `Unavailable` the outcome is unknown: the commit itself may have been cut off.
        """
        with _feed_errors():
            async with asyncio.timeout(deadlines.remaining(timeout_s)):
                for pause_s in retrying.pauses():
                    attempt = _Attempt()
                    try:
                        async with self._transaction(attempt) as connection:
                            result = await work(connection)
                        return result
                    except DBAPIError as error:
                        if pause_s is None or not retrying.helps(error, attempt.is_committing):
                            raise
                    await asyncio.sleep(pause_s)
        raise AssertionError("the last attempt gives or raises")

    @asynccontextmanager
    async def transaction(self, timeout_s: float = TIMEOUT_S) -> AsyncIterator[AsyncConnection]:
        """One attempt at a `write`: committed at the end of the block, rolled back by an exception.

        Raises as `write` does.
        """
        with _feed_errors():
            async with (
                asyncio.timeout(deadlines.remaining(timeout_s)),
                self._transaction(_Attempt()) as connection,
            ):
                yield connection

    @asynccontextmanager
    async def _transaction(self, attempt: "_Attempt") -> AsyncIterator[AsyncConnection]:
        async with AsyncExitStack() as opened:
            with self._writes.connecting("writer"):
                connection = await opened.enter_async_context(self._writer.connect())
            if self.is_sqlite:
                # However often the lock is asked for, waiting for it is one thing.
                with self._writes.transaction("BEGIN"), suppress_instrumentation():
                    await _take_write_lock(connection)
            try:
                yield connection
            except BaseException:
                with self._writes.transaction("ROLLBACK"):
                    await connection.rollback()
                raise
            attempt.is_committing = True
            with self._writes.transaction("COMMIT"):
                await connection.commit()

    async def close(self) -> None:
        """Closes every connection."""
        await self._reader.dispose()
        await self._writer.dispose()


@dataclass(slots=True)
class _Attempt:
    """How far a transaction has come; from its commit on, a lost connection leaves it unknown."""

    is_committing: bool = False


def insert_ignore(table: Table) -> Insert:
    """An INSERT that passes over rows whose key is there; `rowcount` is how many were added.

    MySQL's IGNORE also shortens strings that are too long for their column: callers check lengths.
    """
    return (
        insert(table)
        .prefix_with("OR IGNORE", dialect="sqlite")
        .prefix_with("IGNORE", dialect="mysql")
    )


async def insert_many(
    connection: AsyncConnection, table: Table, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Inserts rows in bulk, passing over those whose key is there.

    Drivers do better with a list of rows than SQLAlchemy with one long VALUES: sqlite3 loops in C
    (20,000 posts in 0.1 s instead of 1.5 s), and PyMySQL's family joins the rows into multi-row
    statements below the packet size itself.
    """
    for chunk in chunks(rows):
        await connection.execute(insert_ignore(table), chunk)


def beyond(
    first: ColumnElement[Any], second: ColumnElement[Any], after: tuple[Any, Any]
) -> ColumnElement[bool]:
    """(first, second) > after, so that TiDB walks along an index: for tuples it scans."""
    return and_(first >= after[0], or_(first > after[0], second > after[1]))


def chunks(items: Sequence[T], size: int = CHUNK) -> Iterator[Sequence[T]]:
    """The items in runs of at most `size`: SQLite takes 32,766 variables in a statement."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def is_sqlite(url: URL) -> bool:
    return url.get_backend_name() == "sqlite"


# Both hide parameters: errors would repeat the values of statements, which are people's data.


def _reader(url: URL) -> AsyncEngine:
    # Nothing is ever open on these connections, so giving one back needs no rollback.
    options: dict[str, Any] = {
        "isolation_level": "AUTOCOMMIT",
        "skip_autocommit_rollback": True,
        "hide_parameters": True,
    }
    if not is_sqlite(url):
        return _tidb_engine(url, **options)
    engine = create_async_engine(url, **options, pool_size=4, max_overflow=0)
    _on_connect(engine, "PRAGMA busy_timeout = 5000", "PRAGMA query_only = ON")
    return engine


def _writer(url: URL) -> AsyncEngine:
    if not is_sqlite(url):
        return _tidb_engine(url, hide_parameters=True)
    # sqlite3 would begin transactions by itself, and not as writers: None stops it.
    engine = create_async_engine(
        url,
        pool_size=1,
        max_overflow=0,
        hide_parameters=True,
        connect_args={"isolation_level": None},
    )
    _on_connect(
        engine,
        "PRAGMA busy_timeout = 5000",
        "PRAGMA journal_mode = WAL",
        # What was acknowledged survives the loss of power, not only of the process.
        "PRAGMA synchronous = FULL",
        f"PRAGMA busy_timeout = {_LOCK_WAIT_MS}",
    )
    return engine


def _tidb_engine(url: URL, **options: Any) -> AsyncEngine:
    engine = create_async_engine(
        url,
        **options,
        pool_size=8,
        max_overflow=8,
        # Less than the 10 minutes after which load balancers often forget a silent connection.
        pool_recycle=300,
        # Connections of before a restart are replaced when they are asked for, not when they fail.
        pool_pre_ping=True,
        connect_args={"connect_timeout": 3},
    )
    # The relay's order rests on locks (docs/decisions/0013), which optimistic transactions lack.
    _on_connect(engine, "SET time_zone = '+00:00', tidb_txn_mode = 'pessimistic'")
    event.listen(engine.sync_engine, "handle_error", _forget_values)
    return engine


def _forget_values(failure: ExceptionContext) -> None:
    """Leaves of a server's message its number and name.

    Servers repeat values in their messages ("Duplicate entry 'ann' for key ..."), and exceptions go
    into spans and logs.
    """
    driver = failure.original_exception
    number = driver.args[0] if driver.args else None
    if isinstance(number, int) and not isinstance(driver, OSError):
        driver.args = (number, retrying.name(number))
        if failure.sqlalchemy_exception is not None:
            kind = type(driver).__name__
            failure.sqlalchemy_exception.args = (f"({kind}) {number} {retrying.name(number)}",)


def _on_connect(engine: AsyncEngine, *statements: str) -> None:
    @event.listens_for(engine.sync_engine, "connect")
    def prepare(connection: Any, _record: Any) -> None:
        cursor = connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()


async def _take_write_lock(connection: AsyncConnection) -> None:
    """Ends when the lock is taken; the transaction's deadline is the bound."""
    while True:
        try:
            await connection.exec_driver_sql("BEGIN IMMEDIATE")
        except OperationalError as error:
            if "locked" not in str(error.orig):
                raise
            await asyncio.sleep(0.005)
        else:
            return


@contextmanager
def _feed_errors() -> Iterator[None]:
    try:
        yield
    except (
        OperationalError,
        InterfaceError,
        InternalError,
        DisconnectionError,
        PoolTimeout,
        OSError,  # TimeoutError is one
    ) as error:
        raise Unavailable("The database does not answer.", retry_after_s=1.0) from error
    except (DataError, OverflowError, UnicodeEncodeError) as error:
        # A 64-bit unsigned id, or half of a surrogate pair.
        raise InvalidArgument("A value is not one that can be stored.") from error
