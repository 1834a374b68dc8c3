"""A CLIENT span for each SQL statement, from SQLAlchemy's own events.

opentelemetry-instrumentation-sqlalchemy 0.66b1 refuses SQLAlchemy 2.1, instruments one engine a
process only, and names spans after the database, which for SQLite is a file's path.
"""

import re
from typing import Any

from opentelemetry import trace
from opentelemetry.instrumentation.utils import is_instrumentation_enabled
from opentelemetry.trace import Span, SpanKind
from sqlalchemy import Engine, event
from sqlalchemy.engine import Connection, ExceptionContext

from mesh import telemetry

# What a statement does, and to which table first of all.
_OPERATION = re.compile(r"\s*(\w+)")
_TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE|JOIN)\s+[`\"]?(\w+)", re.IGNORECASE)
_TEXT_LIMIT = 500


def trace_statements(engine: Engine) -> None:
    """Makes every statement of the engine a span below the current one."""
    url = engine.url
    where: dict[str, str | int] = {"db.system.name": url.get_backend_name()}
    if url.host:
        where["server.address"] = url.host
        where["server.port"] = url.port or 3306
        where["db.namespace"] = url.database or ""

    def started(
        connection: Connection,
        cursor: object,
        statement: str,
        parameters: object,
        context: Any,
        executemany: bool,
    ) -> None:
        if not is_instrumentation_enabled():
            return
        summary = summarize(statement)
        attributes = {
            **where,
            "db.operation.name": summary.partition(" ")[0],
            "db.query.summary": summary,
            # Values are parameters, so the text has nobody's data.
            "db.query.text": " ".join(statement.split())[:_TEXT_LIMIT],
        }
        if executemany and isinstance(parameters, list):
            attributes["db.operation.batch.size"] = len(parameters)
        tracer = trace.get_tracer(telemetry.SCOPE)
        context._feed_span = tracer.start_span(summary, kind=SpanKind.CLIENT, attributes=attributes)

    def ended(
        connection: Connection,
        cursor: object,
        statement: str,
        parameters: object,
        context: Any,
        executemany: bool,
    ) -> None:
        span: Span | None = getattr(context, "_feed_span", None)
        if span is not None:
            span.end()

    def failed(failure: ExceptionContext) -> None:
        span: Span | None = getattr(failure.execution_context, "_feed_span", None)
        # Also when the request was cancelled while the statement ran.
        if span is not None and span.is_recording():
            telemetry.set_error(span, failure.original_exception)
            span.end()

    event.listen(engine, "before_cursor_execute", started)
    event.listen(engine, "after_cursor_execute", ended)
    event.listen(engine, "handle_error", failed)


def summarize(statement: str) -> str:
    """What a statement does to what, of low cardinality: "SELECT posts"."""
    operation = _OPERATION.match(statement)
    table = _TABLE.search(statement)
    words = [operation[1].upper() if operation else "SQL", table[1] if table else ""]
    return " ".join(filter(None, words))
