"""Ids never repeat and only grow, whatever the clock does."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mesh.errors import Unavailable
from mesh.ids import EPOCH_MS, MAX_ID, Snowflakes, created_ms, first_id_at
from mesh.worker_id import WorkerIdLease
from stores.leases.sql import SqlLeases
from stores.sql.database import Database

NOW = 1_790_000_000_000
STEPS = st.integers(-7_200_000, 7_200_000) | st.integers(-3, 3)


class Clock:
    def __init__(self, now_ms: int = NOW) -> None:
        self.now_ms = now_ms

    def __call__(self) -> int:
        return self.now_ms


class DictLeases:
    """Leases of one process, so that hypothesis can try thousands of histories."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._held: dict[str, tuple[str, int]] = {}

    async def acquire(
        self, name: str, holder: str, ttl_s: float, now_ms: int | None = None
    ) -> bool:
        now = self._clock() if now_ms is None else now_ms
        other, expires_at = self._held.get(name, (holder, 0))
        if other != holder and expires_at >= now:
            return False
        self._held[name] = (holder, now + int(ttl_s * 1000))
        return True

    def take_away(self, name: str) -> None:
        self._held[name] = ("another", self._clock() + 60_000)


# -- snowflakes ---------------------------------------------------------------------------------


@given(worker_id=st.integers(0, 1023), history=st.lists(st.tuples(STEPS, st.integers(1, 50))))
@example(worker_id=1023, history=[(0, 5000), (-1, 5000), (1, 1)])
def test_ids_only_grow_under_any_steps_of_the_clock(
    worker_id: int, history: list[tuple[int, int]]
) -> None:
    clock = Clock()
    snowflakes = Snowflakes(worker_id, clock)
    made: list[int] = []
    for step, count in history:
        clock.now_ms += step
        made += [snowflakes.next() for _ in range(count)]
    assert made == sorted(set(made))
    assert all(0 < snowflake <= MAX_ID for snowflake in made)


@given(st.integers(0, 1023), st.integers(EPOCH_MS, EPOCH_MS + (1 << 41) - 1))
def test_an_id_tells_when_it_was_made(worker_id: int, now_ms: int) -> None:
    snowflake = Snowflakes(worker_id, Clock(now_ms)).next()
    assert created_ms(snowflake) == now_ms
    assert first_id_at(now_ms) <= snowflake < first_id_at(now_ms + 1)


def test_workers_never_make_the_same_id() -> None:
    clock = Clock()
    makers = [Snowflakes(worker_id, clock) for worker_id in range(1024)]
    assert len({maker.next() for maker in makers for _ in range(3)}) == 3 * 1024


@pytest.mark.parametrize("worker_id", [-1, 1024])
def test_worker_ids_have_ten_bits(worker_id: int) -> None:
    with pytest.raises(ValueError, match="worker_id"):
        Snowflakes(worker_id)


def test_no_id_is_made_outside_the_allowed_time() -> None:
    clock = Clock()
    snowflakes = Snowflakes(1, clock, from_ms=NOW + 5, until_ms=NOW + 10)
    assert created_ms(snowflakes.next()) == NOW + 5
    clock.now_ms = NOW + 10
    with pytest.raises(Unavailable):
        snowflakes.next()
    snowflakes.allow(2, NOW, NOW + 20)
    assert created_ms(snowflakes.next()) == NOW + 10


# -- worker ids ---------------------------------------------------------------------------------


# Leases of 10 ms, and a clock that steps about as far, so that histories meet at the same times.
@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-14, 14),
            st.sampled_from(["start", "renew", "make", "make", "kill"]),
            st.integers(0, 1),
        ),
        min_size=6,
        max_size=40,
    )
)
# The clock steps back after a worker id was taken from a process that is gone.
@example([(0, "start", 0), (8, "make", 0), (3, "start", 1), (-3, "make", 1)])
# The clock steps back, and a renewal must not give the worker id away earlier than before.
@example(
    [(0, "start", 0), (8, "make", 0), (-14, "renew", 0), (11, "start", 1), (3, "make", 1)],
)
# A process that could not renew wakes up beside its successor.
@example(
    [(0, "start", 0), (5, "renew", 0), (11, "start", 1), (0, "make", 0), (0, "make", 1)],
)
def test_processes_that_come_and_go_never_make_the_same_id(
    history: list[tuple[int, str, int]],
) -> None:
    async def run() -> list[int]:
        clock, made = Clock(), list[int]()
        leases = OneWorkerId(clock)
        running: dict[int, WorkerIdLease] = {}
        for step, what, process in history:
            clock.now_ms += step
            try:
                if what == "start" and process not in running:
                    running[process] = await WorkerIdLease(leases, 0.01, clock).__aenter__()
                elif what == "kill" and process in running:
                    await running.pop(process).__aexit__(None, None, None)
                elif what == "renew" and process in running:
                    await running[process].renew_if_due()
                elif process in running:
                    made += [running[process].snowflakes.next()]
            except Unavailable:
                pass
        for lease in running.values():
            await lease.__aexit__(None, None, None)
        return made

    made = asyncio.run(run())
    assert len(made) == len(set(made))


class OneWorkerId(DictLeases):
    """Only one worker id can be had, so that every process wants the same."""

    async def acquire(
        self, name: str, holder: str, ttl_s: float, now_ms: int | None = None
    ) -> bool:
        return name == "snowflake:7" and await super().acquire(name, holder, ttl_s, now_ms)


async def test_processes_hold_different_worker_ids(database: Database) -> None:
    leases = SqlLeases(database)
    async with WorkerIdLease(leases) as one, WorkerIdLease(leases) as two:
        ids = [lease.snowflakes.next() for lease in (one, two, one, two)]
    assert len({snowflake >> 12 & 1023 for snowflake in ids}) == 2


async def test_ids_stop_when_the_lease_is_not_renewed_and_go_on_when_it_is() -> None:
    clock = Clock()
    async with WorkerIdLease(DictLeases(clock), clock_ms=clock) as lease:
        clock.now_ms += 59_999
        first = lease.snowflakes.next()
        clock.now_ms += 1
        with pytest.raises(Unavailable):
            lease.snowflakes.next()
        await lease.renew_if_due()
        assert lease.snowflakes.next() > first


async def test_a_lost_worker_id_is_replaced_by_another() -> None:
    clock = Clock()
    leases = DictLeases(clock)
    async with WorkerIdLease(leases, clock_ms=clock) as lease:
        first = lease.snowflakes.next()
        clock.now_ms += 60_001
        leases.take_away(f"snowflake:{first >> 12 & 1023}")
        await lease.renew_if_due()
        second = lease.snowflakes.next()
    assert second > first
    assert second >> 12 & 1023 != first >> 12 & 1023


async def test_without_a_free_worker_id_a_process_does_not_start() -> None:
    leases = OneWorkerId(Clock())
    leases.take_away("snowflake:7")
    with pytest.raises(Unavailable):
        await WorkerIdLease(leases, clock_ms=Clock()).__aenter__()
