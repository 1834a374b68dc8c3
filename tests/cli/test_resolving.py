"""Ids of imported things."""

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from cli.resolving import snowflake
from mesh.ids import EPOCH_MS, Snowflakes, created_ms, first_id_at

NOON_MS = int(datetime(2026, 3, 1, 12, tzinfo=UTC).timestamp() * 1000)
times = st.integers(EPOCH_MS, NOON_MS)


def free(_: int) -> bool:
    return False


@given(st.text(min_size=1), times)
def test_an_id_carries_its_time_and_is_the_same_every_time(external: str, at_ms: int) -> None:
    made = snowflake(external, at_ms, free)
    assert created_ms(made) == at_ms
    assert made == snowflake(external, at_ms, free)
    assert 0 <= made < 2**63


@given(st.lists(st.text(min_size=1), unique=True, min_size=2, max_size=50))
def test_ids_of_one_millisecond_differ_even_where_hashes_meet(names: list[str]) -> None:
    low_bits = (1 << 22) - 1
    taken: set[int] = set()

    def is_taken(each: int) -> bool:
        # Of every 64 neighbours one is free at first, so that neighbours must be looked for.
        return each in taken or (each & low_bits) % 64 != 0

    for name in names:
        made = snowflake(name, NOON_MS, is_taken)
        assert created_ms(made) == NOON_MS
        assert made not in taken
        taken.add(made)


def test_the_search_for_a_free_id_goes_on_at_the_first_of_the_millisecond() -> None:
    hashed = snowflake("x", NOON_MS, free)
    made = snowflake("x", NOON_MS, lambda each: each >= hashed)
    assert made == first_id_at(NOON_MS)


def test_an_exported_id_stays_what_it_is() -> None:
    own = Snowflakes(worker_id=7, clock_ms=lambda: NOON_MS).next()
    # A user's time is taken from the clock a moment after their id.
    assert snowflake(str(own), NOON_MS + 3, free) == own


def test_a_number_of_another_time_is_a_foreign_id_like_any_other() -> None:
    own = first_id_at(NOON_MS)
    for foreign in (str(own), "17", str(2**63), "0" + str(own), "\uff19"):
        made = snowflake(foreign, NOON_MS - 3_600_000, free)
        assert created_ms(made) == NOON_MS - 3_600_000
