"""A CLIENT span for each SQL statement, and for what surrounds statements.

From SQLAlchemy's own events, because opentelemetry-instrumentation-sqlalchemy 0.66b1 refuses
SQLAlchemy 2.1 and names spans after the database, which for SQLite is a file's path
(docs/decisions/0009).
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import StatusCode
from opentelemetry.util.types import AttributeValue
from sqlalchemy import Engine, Select, Table, event
from sqlalchemy.engine import Connection, ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql.compiler import Compiled
from sqlalchemy.sql.dml import UpdateBase

from mesh import telemetry
from mesh.db_spans import Attributes, Database, Operation

# What a statement does, and to which tables.
_OPERATION = re.compile(r"\s*(\w+)")
_TABLE = re.compile(
    r"\b(?:FROM|INTO|JOIN|(?<!FOR )(?<!KEY )(?<!DO )UPDATE)\s+[`\"]?(\w+)", re.IGNORECASE
)
_TEXT_LIMIT = 500
_SUMMARY_LIMIT = 255
# A connection that is had sooner was waiting, and not the caller for it.
_WAIT_NS = 1_000_000


class SqlSpans:
    """The spans of one engine; its statements make theirs by themselves from now on."""

    def __init__(self, engine: Engine) -> None:
        url = engine.url
        where: dict[str, str | int] = {}
        if url.host:
            where["server.address"] = url.host
            where["server.port"] = url.port or 3306
            where["db.namespace"] = url.database or ""
        self._database = Database(url.get_backend_name(), where, _status_code)
        event.listen(engine, "before_cursor_execute", self._started)
        event.listen(engine, "after_cursor_execute", _ended)
        event.listen(engine, "handle_error", _failed)

    def _started(
        self,
        _connection: Connection,
        _cursor: object,
        statement: str,
        parameters: object,
        context: Any,
        executemany: bool,
    ) -> None:
        if not is_instrumentation_enabled():
            return
        count = len(parameters) if executemany and isinstance(parameters, list) else 1
        context._feed_operation = Operation(
            self._database,
            _name(statement, count),
            lambda: _describe(statement, count, context.compiled),
        )

    @contextmanager
    def transaction(self, verb: str) -> Iterator[None]:
        """Makes the block, which begins or ends a transaction, a span: BEGIN, COMMIT, ROLLBACK."""
        if not is_instrumentation_enabled():
            yield
            return
        with Operation(self._database, verb, lambda: (verb, {})):
            yield

    @contextmanager
    def connecting(self, pool: str) -> Iterator[None]:
        """Makes the block, which gets a connection, a span when that takes time.

        Args:
            pool: The pool's name.
        """
        started = time.time_ns()
        try:
            yield
        except BaseException as error:
            self._waited(pool, started, error)
            raise
        if time.time_ns() - started >= _WAIT_NS:
            self._waited(pool, started, None)

    def _waited(self, pool: str, started: int, error: BaseException | None) -> None:
        if not is_instrumentation_enabled():
            return
        attributes = {
            "db.system.name": self._database.system,
            "db.client.connection.pool.name": pool,
        }
        span = trace.get_tracer(telemetry.SCOPE).start_span(
            "wait for a connection", start_time=started, attributes=attributes
        )
        if error is not None:
            span.set_attribute("error.type", self._database.error_type(error))
            span.set_status(StatusCode.ERROR)
        span.end()


def _ended(
    _connection: Connection,
    _cursor: object,
    _statement: str,
    _parameters: object,
    context: Any,
    _executemany: bool,
) -> None:
    _end(context, None)


def _failed(failure: ExceptionContext) -> None:
    # Also when the request was cancelled while the statement ran.
    _end(failure.execution_context, failure.original_exception)


def _end(context: Any, error: BaseException | None) -> None:
    operation: Operation | None = getattr(context, "_feed_operation", None)
    if operation is not None:
        context._feed_operation = None
        operation.end(error)


def _name(statement: str, count: int) -> str:
    """What a statement does: "SELECT"; for several sets of parameters "BATCH INSERT"."""
    operation = _OPERATION.match(statement)
    name = operation[1].upper() if operation else "SQL"
    return name if count < 2 else f"BATCH {name}"


def _describe(statement: str, count: int, compiled: Compiled | None) -> tuple[str, Attributes]:
    # Values are parameters, so the text has nobody's data.
    text, tables = _read(statement)
    attributes: dict[str, AttributeValue] = {"db.query.text": text}
    table = _table(compiled) if compiled is not None else None
    if table is not None:
        attributes["db.collection.name"] = table
    if count > 1:
        attributes["db.operation.batch.size"] = count
    return f"{_name(statement, count)} {tables}".rstrip(), attributes


@lru_cache(maxsize=512)
def _read(statement: str) -> tuple[str, str]:
    """The text as one line, and the tables it names."""
    tables = " ".join(dict.fromkeys(_TABLE.findall(statement)))
    return " ".join(statement.split())[:_TEXT_LIMIT], tables[:_SUMMARY_LIMIT]


# SQLAlchemy keeps compiled statements, and looking into one takes as long as a short statement.
_tables: WeakKeyDictionary[Compiled, str | None] = WeakKeyDictionary()


def _table(compiled: Compiled) -> str | None:
    """The one table that a statement is about, if it is one."""
    if compiled not in _tables:
        _tables[compiled] = _find_table(compiled.statement)
    return _tables[compiled]


def _find_table(statement: object) -> str | None:
    tables: Sequence[object] = ()
    if isinstance(statement, UpdateBase):
        tables = [statement.table]
    elif isinstance(statement, Select):
        tables = statement.get_final_froms()
    return tables[0].name if len(tables) == 1 and isinstance(tables[0], Table) else None


def _status_code(error: BaseException) -> str:
    """SQLite's name of the error, such as SQLITE_CONSTRAINT_UNIQUE, or MySQL's number of it."""
    driver: Any = error.orig if isinstance(error, DBAPIError) else error
    if name := getattr(driver, "sqlite_errorname", None):
        return str(name)
    number = driver.args[0] if driver.args else None
    return str(number) if isinstance(number, int) and not isinstance(driver, OSError) else ""
