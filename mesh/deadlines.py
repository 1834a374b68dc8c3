"""The time that is left of the current request. gRPC deadlines carry it from hop to hop."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_deadline: ContextVar[float | None] = ContextVar("feedmesh_deadline", default=None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Within it, the request must end in `seconds`, or earlier if that was decided before."""
    end = time.monotonic() + seconds
    earlier = _deadline.get()
    token = _deadline.set(end if earlier is None else min(end, earlier))
    try:
        yield
    finally:
        _deadline.reset(token)


def remaining(at_most: float) -> float:
    """Seconds that a call may take now: `at_most`, or what is left of the request's deadline.

    Never below a millisecond, so that an expired deadline ends the call rather than being no limit.
    """
    end = _deadline.get()
    return at_most if end is None else max(min(at_most, end - time.monotonic()), 0.001)


def with_grace(at_most: float) -> float:
    """`remaining`, and a tenth more: for a timeout that backs up the deadlines of calls.

    A call shall end by its own deadline, because that is told to both its ends.
    """
    return remaining(at_most) * 1.1
