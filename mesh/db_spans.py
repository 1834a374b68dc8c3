"""What one operation of a database leaves behind: a CLIENT span, and its duration as a metric.

By OpenTelemetry's conventions for databases. `error.type` is the database's own code where it gave
one, CANCELLED when the caller went away or its time was up, else the exception's class. Messages
stay out of spans: databases repeat people's data in them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from types import TracebackType

from opentelemetry import propagate, trace
from opentelemetry.trace import Span, SpanKind, StatusCode
from opentelemetry.util.types import AttributeValue
from prometheus_client import Histogram

from mesh import metrics, telemetry

Attributes = Mapping[str, AttributeValue]
# The summary of what is done, of low cardinality, and what else is to be known of it.
Describe = Callable[[], tuple[str, Attributes]]

_tracer = trace.get_tracer(telemetry.SCOPE)


@dataclass(frozen=True, slots=True)
class Database:
    """Whom operations are sent to.

    Args:
        system: `db.system.name`.
        where: server.address, server.port and db.namespace, as far as there are any.
        status_code: The database's own code of an error; empty where it gave none.
    """

    system: str
    where: Attributes
    status_code: Callable[[BaseException], str]

    def error_type(self, error: BaseException) -> str:
        """What spans and metrics call the error."""
        return self.status_code(error) or telemetry.error_type(error)


class Operation:
    """One operation, from its making to `end`, or while its block runs; exceptions pass.

    In a trace that is not kept it only takes the time.

    Args:
        database: Whom it is sent to.
        name: `db.operation.name`, of low cardinality.
        describe: Called only when the span is recorded.
    """

    __slots__ = ("_database", "_name", "_span", "_started")

    def __init__(self, database: Database, name: str, describe: Describe) -> None:
        self._database = database
        self._name = name
        self._span = self._start_span(describe) if _is_kept() else None
        self._started = time.perf_counter()

    def _start_span(self, describe: Describe) -> Span:
        summary, attributes = describe()
        return _tracer.start_span(
            summary,
            kind=SpanKind.CLIENT,
            attributes={
                "db.system.name": self._database.system,
                "db.operation.name": self._name,
                "db.query.summary": summary,
                **self._database.where,
                **attributes,
            },
        )

    def headers(self) -> dict[str, str]:
        """The W3C headers that tell the database of this operation's span."""
        headers: dict[str, str] = {}
        span = self._span
        propagate.inject(headers, None if span is None else trace.set_span_in_context(span))
        return headers

    def end(self, error: BaseException | None = None) -> None:
        """Ends it, successfully or by the error."""
        seconds = time.perf_counter() - self._started
        kind = "" if error is None else self._database.error_type(error)
        duration = _duration(self._database.system, self._name, kind)
        if self._span is None:
            # No trace to lead to.
            duration.observe(seconds)
            return
        metrics.observe(duration, seconds)
        if error is not None:
            self._span.set_attribute("error.type", kind)
            self._span.set_status(StatusCode.ERROR)
            if code := self._database.status_code(error):
                self._span.set_attribute("db.response.status_code", code)
        self._span.end()

    def __enter__(self) -> "Operation":
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.end(error)


def _is_kept() -> bool:
    """Whether a span would be; the samplers of `mesh.telemetry` follow the parent."""
    parent = trace.get_current_span().get_span_context()
    return parent.trace_flags.sampled or not parent.is_valid


@cache
def _duration(system: str, operation: str, error_type: str) -> Histogram:
    """Finding it anew takes longer than observing."""
    return metrics.DB_CLIENT.labels(system, operation, error_type)
