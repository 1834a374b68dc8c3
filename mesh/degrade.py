"""Going on without a backend: quality is lost, never the page."""

import asyncio
import logging
from collections.abc import Awaitable
from contextvars import ContextVar
from typing import TypeVar

from mesh import deadlines, metrics, telemetry

T = TypeVar("T")
_log = logging.getLogger(__name__)
_degraded: ContextVar[list[str] | None] = ContextVar("feedmesh_degraded", default=None)


async def best_effort(
    call: Awaitable[T], fallback: T, *, backend: str, degraded: list[str], timeout_s: float
) -> T:
    """The call's result; or `fallback`, when it fails or takes longer than `timeout_s`.

    Then `backend` is named in `degraded`, counted, logged, and marked on the current span.
    """
    token = _degraded.set(degraded)
    try:
        # What is called gets the same deadline, so that it ends by that and both its ends know why;
        # the timeout only backs that up.
        with deadlines.within(timeout_s):
            async with asyncio.timeout(deadlines.with_grace(timeout_s)):
                return await call
    except Exception as error:
        # Any failure counts, also one nobody foresaw: this is where the page is kept alive.
        mark(backend, error, degraded)
        return fallback
    finally:
        _degraded.reset(token)


def fell_back(backend: str, error: Exception) -> None:
    """`mark`, for a store that has something of its own to go on with, and so returns a result.

    It is named in the `degraded` of the `best_effort` that asked, if one did.
    """
    degraded = _degraded.get()
    mark(backend, error, [] if degraded is None else degraded)


def mark(backend: str, error: Exception, degraded: list[str]) -> None:
    """Notes that the request goes on without `backend`, because of `error`."""
    if backend not in degraded:
        degraded.append(backend)
    metrics.count(metrics.FEED_DEGRADED.labels(backend))
    reason = telemetry.error_type(error)
    _log.warning("going on without %s: %s: %s", backend, reason, error)
    telemetry.annotate({f"feed.without.{backend}": reason})
