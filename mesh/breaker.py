"""Circuit breakers: a backend that keeps failing is left alone for a while.

The libraries there are do not tell a cancelled call from a finished one: purgatory 3.0.1 and
circuitbreaker 2.1.3 take it for a failure or for a success, and let every call through half open.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

from mesh import metrics, telemetry
from mesh.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
)

_log = logging.getLogger(__name__)
# A backend that refuses a call is there.
_REFUSALS = (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Unauthenticated,
)


class State(IntEnum):
    """As the metric `breaker_state` shows it."""

    CLOSED = 0  # calls pass
    HALF_OPEN = 1  # one call tries whether the backend is back
    OPEN = 2  # calls are refused


class Breaker:
    """Opens after some failures in a row; then lets one call try, now and again.

    Args:
        name: The backend, for the metric, spans and log lines.
        failures: In a row, after which it opens.
        retry_after_s: Seconds from opening to the next try.
        clock: Seconds that never go back.
    """

    def __init__(
        self,
        name: str,
        *,
        failures: int = 5,
        retry_after_s: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._name = name
        self._limit = failures
        self._retry_after_s = retry_after_s
        self._clock = clock
        self._retry_at = 0.0
        self._failures = 0
        # Counts the changes of state: a call's end says nothing of a state it did not begin in.
        self._period = 0
        self._turn(State.CLOSED)

    @property
    def state(self) -> State:
        """The state now."""
        return self._state

    @contextmanager
    def guard(self) -> Iterator[None]:
        """To be put around one call. Its exceptions are raised on, and are failures.

        Neither a failure nor a success is a cancellation, since then nobody knows. Errors by which
        a backend refuses a call, such as InvalidArgument, are successes.

        Raises:
            Unavailable: At once, while the breaker is open; `feed.breaker.open` is on the span.
        """
        period = self._enter()
        try:
            yield
        except _REFUSALS:
            self._succeeded(period)
            raise
        except Exception:
            self._failed(period)
            raise
        except BaseException:
            self._unknown(period)
            raise
        else:
            self._succeeded(period)

    def _enter(self) -> int:
        if self._state is State.OPEN and self._clock() >= self._retry_at:
            self._turn(State.HALF_OPEN)
        elif self._state is not State.CLOSED:
            telemetry.annotate({"feed.breaker.open": self._name})
            raise Unavailable(
                f"{self._name} is left alone, as it keeps failing",
                retry_after_s=max(self._retry_at - self._clock(), 0.0),
            )
        return self._period

    def _succeeded(self, period: int) -> None:
        if period == self._period:
            self._failures = 0
            if self._state is not State.CLOSED:
                self._turn(State.CLOSED)

    def _failed(self, period: int) -> None:
        if period == self._period:
            self._failures += 1
            if self._state is State.HALF_OPEN or self._failures >= self._limit:
                self._retry_at = self._clock() + self._retry_after_s
                self._turn(State.OPEN)

    def _unknown(self, period: int) -> None:
        """The next call may try in the place of this one."""
        if period == self._period and self._state is State.HALF_OPEN:
            self._turn(State.OPEN)

    def _turn(self, state: State) -> None:
        self._state = state
        self._period += 1
        metrics.BREAKER_STATE.labels(self._name).set(state)
        if self._period > 1:
            _log.warning(
                "the breaker of %s is %s", self._name, state.name.lower().replace("_", " ")
            )
