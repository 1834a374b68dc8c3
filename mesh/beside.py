"""Work beside the requests: nobody waits for it, and it has a trace of its own."""

import asyncio
import contextvars
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from opentelemetry.context import Context

from mesh import telemetry


class Beside:
    """Runs work in the background, a few at a time; an async context manager.

    Each has a trace of its own, linked to the request's: it neither delays the response nor is it
    cut off by the request's deadline. Leaving the context ends those that run. What fails says so
    on its span.

    Args:
        name: Of the spans.
        at_once: More would take time from requests.
    """

    def __init__(self, name: str, at_once: int) -> None:
        self._name = name
        self._at_once = at_once
        self._running: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    def begin(self, work: Callable[[], Awaitable[None]]) -> bool:
        """Begins it, with the current service and a link to the current span; False: too many."""
        if len(self._running) >= self._at_once:
            return False
        service, links = telemetry.service(), telemetry.link_to(telemetry.inject())

        async def run() -> None:
            with (
                telemetry.as_service(service),
                telemetry.span(self._name, context=Context(), links=links),
            ):
                await work()

        # An empty context: neither the request's span nor its deadline reach the task.
        task = asyncio.get_running_loop().create_task(run(), context=contextvars.Context())
        self._running.add(task)
        task.add_done_callback(self._done)
        return True

    def _done(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            # Asked for, so that asyncio does not report it; the span has it already.
            task.exception()
