"""A circuit breaker, by its states; time is the test's."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.registry import REGISTRY

from mesh.breaker import Breaker, State
from mesh.errors import FailedPrecondition, Unavailable


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Guarded:
    """A breaker that opens after 3 failures and tries again after 10 seconds."""

    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.breaker = Breaker("tested", failures=3, retry_after_s=10, clock=self.clock)

    def state(self) -> State:
        return self.breaker.state

    def call(self, error: BaseException | None = None) -> None:
        with self.breaker.guard():
            if error is not None:
                raise error

    def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(RuntimeError):
                self.call(RuntimeError())

    @contextlib.contextmanager
    def refused(self) -> Iterator[None]:
        with pytest.raises(Unavailable, match="tested is left alone"):
            yield


@pytest.fixture
def guarded() -> Guarded:
    return Guarded()


def gauge() -> float | None:
    return REGISTRY.get_sample_value("breaker_state", {"name": "tested"})


def test_it_opens_after_failures_in_a_row_and_then_refuses_at_once(guarded: Guarded) -> None:
    guarded.fail(2)
    guarded.call()
    guarded.fail(2)
    assert guarded.state() is State.CLOSED
    guarded.fail()
    assert guarded.state() is State.OPEN
    with guarded.refused():
        guarded.call()


def test_after_a_while_one_call_tries_and_its_success_closes_it(guarded: Guarded) -> None:
    guarded.fail(3)
    guarded.clock.now = 9.9
    with guarded.refused():
        guarded.call()
    guarded.clock.now = 10
    with guarded.breaker.guard():
        assert guarded.state() is State.HALF_OPEN
        with guarded.refused():
            guarded.call()
    assert guarded.state() is State.CLOSED
    guarded.fail(2)
    assert guarded.state() is State.CLOSED


def test_a_try_that_fails_opens_it_for_as_long_again(guarded: Guarded) -> None:
    guarded.fail(3)
    guarded.clock.now = 10
    guarded.fail()
    guarded.clock.now = 19.9
    with guarded.refused():
        guarded.call()
    guarded.clock.now = 20
    guarded.call()
    assert guarded.state() is State.CLOSED


def test_a_cancelled_call_is_no_failure(guarded: Guarded) -> None:
    guarded.fail(2)
    with pytest.raises(asyncio.CancelledError):
        guarded.call(asyncio.CancelledError())
    assert guarded.state() is State.CLOSED
    guarded.fail()
    assert guarded.state() is State.OPEN, "nor is it a success"


def test_a_cancelled_try_leaves_the_trying_to_the_next_call(guarded: Guarded) -> None:
    guarded.fail(3)
    guarded.clock.now = 10
    with pytest.raises(asyncio.CancelledError):
        guarded.call(asyncio.CancelledError())
    assert guarded.state() is State.OPEN
    guarded.call()
    assert guarded.state() is State.CLOSED


def test_a_backend_that_refuses_calls_is_there(guarded: Guarded) -> None:
    for _ in range(5):
        with pytest.raises(FailedPrecondition):
            guarded.call(FailedPrecondition("not so"))
    assert guarded.state() is State.CLOSED


def test_calls_of_an_earlier_state_say_nothing_of_the_present_one(guarded: Guarded) -> None:
    with guarded.breaker.guard():
        guarded.fail(3)
    assert guarded.state() is State.OPEN, "a late success does not close it"
    guarded.clock.now = 10
    guarded.call()
    with pytest.raises(RuntimeError), guarded.breaker.guard():  # noqa: PT012  all of it is meant
        guarded.fail(3)
        guarded.clock.now = 20
        guarded.call()
        raise RuntimeError
    guarded.fail(2)
    assert guarded.state() is State.CLOSED, "a late failure does not count"


def test_the_metric_shows_the_state(guarded: Guarded) -> None:
    assert gauge() == 0
    guarded.fail(3)
    assert gauge() == 2
    guarded.clock.now = 10
    with guarded.breaker.guard():
        assert gauge() == 1
    assert gauge() == 0


def test_a_refused_call_is_marked_on_its_span(guarded: Guarded) -> None:
    kept = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(kept))
    guarded.fail(3)
    with provider.get_tracer("test").start_as_current_span("caller"), guarded.refused():
        guarded.call()
    [span] = kept.get_finished_spans()
    assert dict(span.attributes or {}) == {"feed.breaker.open": "tested"}
