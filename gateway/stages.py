"""How the steps of GET /feed run: each within its share of the deadline, each with a stand-in."""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from opentelemetry.trace import Span

from gateway.backends import Backends
from mesh import deadlines, metrics, telemetry
from mesh.degrade import mark
from mesh.errors import DeadlineExceeded

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Run:
    """One making of a feed.

    Attributes:
        here: The backends.
        reader_id: Whose feed it is.
        limit: Posts on a page.
        degraded: What was away so far.
    """

    here: Backends
    reader_id: int
    limit: int
    degraded: list[str] = field(default_factory=list)

    @property
    def deadline_s(self) -> float:
        """Seconds that the whole feed may take."""
        return self.here.settings.feed_deadline_s

    def note(self, degraded: Iterable[str]) -> None:
        """Adds what a service went on without."""
        self.degraded.extend(name for name in degraded if name not in self.degraded)


@dataclass(frozen=True, slots=True)
class Stage(Generic[P, T]):
    """A step of the pipeline.

    Attributes:
        name: In metrics and in `degraded`.
        share: Of the feed's deadline, 0 to 1. A step without a stand-in may take all that is left:
            for it, the share is what the others leave.
        work: The step.
        stand_in: What takes its place when it fails: takes the same, and needs no backend. None
            when there is no page without the step; then its error is the request's.
    """

    name: str
    share: float
    work: Callable[Concatenate[Run, P], Coroutine[Any, Any, T]]
    stand_in: Callable[Concatenate[Run, P], T] | None

    async def __call__(self, run: Run, *args: P.args, **kwargs: P.kwargs) -> T:
        """The step's result, or what stands in for it."""
        budget_s = run.deadline_s * (self.share if self.stand_in is not None else 1.0)
        with self._span(run, budget_s) as span:
            try:
                with metrics.feed_stage(self.name), deadlines.within(budget_s):
                    async with asyncio.timeout(deadlines.with_grace(budget_s)):
                        result = await self.work(run, *args, **kwargs)
                span.set_attribute("feed.stage.outcome", "ok")
                return result
            except Exception as error:
                # Any failure counts, also one nobody foresaw: this is where the page is kept alive.
                if self.stand_in is None:
                    if isinstance(error, TimeoutError):
                        raise DeadlineExceeded(f"The feed's {self.name} took too long.") from error
                    raise
                mark(self.name, error, run.degraded)
                # The page goes on without it, but this stage did fail.
                telemetry.set_error(span, error)
                span.set_attribute("feed.stage.outcome", "stand_in")
                return self.stand_in(run, *args, **kwargs)

    @contextmanager
    def _span(self, run: Run, budget_s: float) -> Iterator[Span]:
        """The stage in the trace, with the share of the whole feed's deadline that it used."""
        started = time.monotonic()
        attributes: dict[str, str | float] = {
            "feed.stage.name": self.name,
            "feed.stage.budget": round(budget_s / run.deadline_s, 4),
            "feed.stage.outcome": "failed",
        }
        with telemetry.span(f"stage {self.name}", attributes=attributes) as span:
            try:
                yield span
            finally:
                used = (time.monotonic() - started) / run.deadline_s
                span.set_attribute("feed.stage.deadline_used", round(used, 4))
