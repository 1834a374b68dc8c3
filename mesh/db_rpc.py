"""One call to a database that speaks gRPC: its span, its deadline and its errors."""

import asyncio
import logging
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext

import grpc
from opentelemetry.instrumentation.utils import is_instrumentation_enabled

from mesh import deadlines, telemetry
from mesh.db_spans import Attributes, Database, Operation
from mesh.errors import FeedError, Internal, Unavailable

_log = logging.getLogger(__name__)
_Code = grpc.StatusCode
# The same call may work later.
_PASSING = frozenset(
    {
        _Code.UNAVAILABLE,
        _Code.DEADLINE_EXCEEDED,
        _Code.RESOURCE_EXHAUSTED,
        _Code.CANCELLED,
        _Code.INTERNAL,
        _Code.UNKNOWN,
    }
)


class Conflict(Unavailable):
    """Another transaction was in the way; the same one may succeed at once."""


def database(system: str, address: str, **where: str) -> Database:
    """A database at HOST:PORT, whose errors are gRPC's; `where` has "." as "_" in its names."""
    host, _, port = address.rpartition(":")
    more = {name.replace("_", "."): value for name, value in where.items()}
    return Database(
        system, {"server.address": host, "server.port": int(port), **more}, _status_code
    )


@asynccontextmanager
async def calling(
    target: Database, name: str, summary: str, at_most_s: float, attributes: Attributes
) -> AsyncIterator[Mapping[str, str]]:
    """The block makes one call. Within it are the headers that make the call a part of the trace.

    Args:
        target: Whom it goes to.
        name: `db.operation.name`, of low cardinality.
        summary: What it does to what, of low cardinality.
        at_most_s: Seconds that it may take; cut to what is left of the request's deadline.
        attributes: What else is to be known of it.

    Raises:
        Conflict: Another transaction was in the way.
        Unavailable: The database is away, late or busy.
        Internal: It refuses what we ask for; the log has its code.
    """
    traced = is_instrumentation_enabled()
    operation = Operation(target, name, lambda: (summary, attributes)) if traced else nullcontext()
    try:
        with operation as started:
            async with asyncio.timeout(deadlines.remaining(at_most_s)):
                yield started.headers() if started is not None else telemetry.inject()
    except TimeoutError:
        raise Unavailable(f"{target.system} did not answer in time") from None
    except grpc.RpcError as error:
        raise _feed_error(target, name, error) from None


def code_of(error: BaseException) -> grpc.StatusCode | None:
    """gRPC's code of the error, if it has one."""
    return error.code() if isinstance(error, grpc.RpcError) and hasattr(error, "code") else None


def _feed_error(target: Database, name: str, error: grpc.RpcError) -> FeedError:
    code = code_of(error)
    if code is _Code.ABORTED:
        return Conflict(f"{target.system} gave way to another transaction")
    if code in _PASSING:
        return Unavailable(f"{target.system} cannot be used now ({code.name})")
    said = code.name if code else type(error).__name__
    # Its message may repeat people's data.
    _log.error("%s refuses %s: %s", target.system, name, said)
    return Internal(f"{target.system} refuses a call")


def _status_code(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return _Code.DEADLINE_EXCEEDED.name
    code = code_of(error)
    return code.name if code else ""
