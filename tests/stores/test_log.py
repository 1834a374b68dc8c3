"""What every log of feeds does, and what the Parquet files do besides."""

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import Unavailable
from ranker_svc import features
from stores.log import schemas
from stores.log.parquet import ParquetLog
from stores.log.port import FeedLog, Kind
from stores.log.schemas import SCHEMAS

NOON = datetime(2026, 3, 4, 12, tzinfo=UTC)
TODAY = NOON.date()


@pytest.fixture(params=["parquet"])
def log(tmp_path: Path) -> ParquetLog:
    """Every adapter, by its name."""
    return ParquetLog(tmp_path / "log")


def engagements(ids: Sequence[str], at: datetime = NOON) -> pa.Table:
    rows = [
        {
            "event_id": each, "user_id": 1, "post_id": 2, "author_id": 3, "action": "like",
            "at": at,
        }
        for each in ids
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMAS[Kind.ENGAGEMENTS])


def served(event_ids: Sequence[str], places: int, at: datetime = NOON) -> pa.Table:
    rows = [
        {
            "event_id": event_id, "feed_id": f"feed of {event_id}", "user_id": (1 << 62) + 1,
            "served_at": at, "model_version": "heuristic/1", "position": position,
            "post_id": (1 << 62) + position, "author_id": 7, "score": 0.25, "propensity": 0.5,
            "pool": [(1 << 62) + position, 9], "age_hours": float(position), "topic": 5,
            "source": 1, "hour": 12,
        }
        for event_id in event_ids
        for position in range(places)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMAS[Kind.SERVED])


def ids(table: pa.Table) -> list[str]:
    found: list[str] = table["event_id"].to_pylist()
    return found


def files(root: Path) -> list[Path]:
    return [each for each in root.rglob("*") if each.is_file()]


async def test_rows_come_back_as_they_went(log: FeedLog) -> None:
    for kind, rows in (
        (Kind.SERVED, served(["a", "b"], 3)),
        (Kind.ENGAGEMENTS, engagements(["c"])),
    ):
        await log.append(kind, rows)
        assert log.read(kind).equals(rows)
        assert log.days(kind) == [TODAY]


def test_nothing_is_an_empty_table_of_the_right_columns(log: FeedLog) -> None:
    for kind in Kind:
        assert (log.days(kind), log.read(kind).num_rows) == ([], 0)
        assert log.read(kind).schema == SCHEMAS[kind]


async def test_repeats_are_read_once_wherever_they_are(log: FeedLog) -> None:
    await log.append(Kind.SERVED, served(["a", "b", "a"], 3))
    await log.append(Kind.SERVED, served(["b", "c"], 3))
    read = log.read(Kind.SERVED)
    assert sorted(zip(ids(read), read["position"].to_pylist(), strict=True)) == [
        (event, position) for event in "abc" for position in range(3)
    ]


async def test_days_are_apart(log: FeedLog) -> None:
    midnight = datetime(2026, 3, 5, tzinfo=UTC)
    before = engagements(["late"], midnight - timedelta(milliseconds=1))
    await log.append(Kind.ENGAGEMENTS, pa.concat_tables([engagements(["early"], midnight), before]))
    assert log.days(Kind.ENGAGEMENTS) == [date(2026, 3, 4), date(2026, 3, 5)]
    assert ids(log.read(Kind.ENGAGEMENTS, last=date(2026, 3, 4))) == ["late"]
    assert ids(log.read(Kind.ENGAGEMENTS, first=date(2026, 3, 5))) == ["early"]
    assert log.read(Kind.ENGAGEMENTS, columns=["post_id"]).schema.names == ["post_id"]


async def test_other_columns_are_refused(log: FeedLog) -> None:
    with pytest.raises(ValueError, match="have the columns"):
        await log.append(Kind.SERVED, engagements(["a"]))


async def test_closed_days_become_one_file_of_the_same_rows(log: FeedLog, tmp_path: Path) -> None:
    for n in range(5):
        await log.append(Kind.SERVED, served([f"a{n}", f"a{n + 1}"], 4))
    await log.append(Kind.SERVED, served(["open"], 1, NOON + timedelta(days=1)))
    before = sorted(ids(log.read(Kind.SERVED)))
    assert await log.compact(TODAY + timedelta(days=1)) == 5
    assert len(files(tmp_path)) == 2
    assert sorted(ids(log.read(Kind.SERVED))) == before
    assert await log.compact(TODAY + timedelta(days=1)) == 0
    # Late ones are joined, too, and repeats of what is in the file already.
    await log.append(Kind.SERVED, served(["late", "a1"], 4))
    assert await log.compact(TODAY + timedelta(days=1)) == 2
    assert sorted(ids(log.read(Kind.SERVED))) == sorted([*before, *["late"] * 4])
    stored = [file for file in files(tmp_path) if f"day={TODAY}" in str(file)]
    assert pq.ParquetFile(stored[0]).metadata.num_rows == (6 + 1) * 4


async def test_a_crash_between_a_new_file_and_the_end_of_the_old_ones_doubles_nothing(
    log: FeedLog, tmp_path: Path
) -> None:
    await log.append(Kind.SERVED, served(["a", "b"], 4))
    await log.append(Kind.SERVED, served(["c"], 4))
    old = {file: file.read_bytes() for file in files(tmp_path)}
    await log.compact(TODAY + timedelta(days=1))
    for file, content in old.items():
        file.write_bytes(content)
    assert sorted(ids(log.read(Kind.SERVED))) == sorted([*"aaaabbbbcccc"])
    assert await log.compact(TODAY + timedelta(days=1)) == 3
    assert sorted(ids(log.read(Kind.SERVED))) == sorted([*"aaaabbbbcccc"])


async def test_old_days_are_forgotten(log: FeedLog) -> None:
    for days in range(4):
        await log.append(Kind.ENGAGEMENTS, engagements([f"{days}"], NOON - timedelta(days=days)))
        await log.append(Kind.SERVED, served([f"{days}"], 1, NOON - timedelta(days=days)))
    assert await log.forget(TODAY - timedelta(days=1)) == 2
    for kind in (Kind.SERVED, Kind.ENGAGEMENTS):
        assert log.days(kind) == [TODAY - timedelta(days=1), TODAY]
        assert sorted(ids(log.read(kind))) == ["0", "1"]


async def test_what_is_unfinished_is_not_read_and_is_swept_up(log: FeedLog, tmp_path: Path) -> None:
    await log.append(Kind.ENGAGEMENTS, engagements(["a"]))
    folder = files(tmp_path)[0].parent
    half = folder / ".half.parquet"
    half.write_bytes(b"PAR1")
    assert ids(log.read(Kind.ENGAGEMENTS)) == ["a"]
    await log.compact(TODAY + timedelta(days=1))
    assert half.exists()  # Somebody may still be writing it.
    os.utime(half, (0, 0))
    await log.compact(TODAY + timedelta(days=1))
    assert not half.exists()


async def test_a_column_that_came_later_is_null_in_earlier_files(
    log: FeedLog, tmp_path: Path
) -> None:
    await log.append(Kind.SERVED, served(["a"], 1))
    file = files(tmp_path)[0]
    pq.write_table(pq.ParquetFile(file).read().drop_columns(["topic"]), file)
    assert log.read(Kind.SERVED)["topic"].to_pylist() == [None]


async def test_a_folder_that_cannot_be_written_is_away(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file")
    with pytest.raises(Unavailable):
        await ParquetLog(tmp_path / "log").append(Kind.ENGAGEMENTS, engagements(["a"]))


async def test_reading_goes_on_while_days_are_compacted(log: ParquetLog) -> None:
    expected = {f"{n}" for n in range(30)}
    for each in expected:
        await log.append(Kind.ENGAGEMENTS, engagements([each]))
    wrong: list[list[str]] = []
    done = threading.Event()

    def read_on() -> None:
        while not done.is_set():
            found = ids(log.read(Kind.ENGAGEMENTS))
            if sorted(set(found) & expected) != sorted(expected) or len(found) != len(set(found)):
                wrong.append(found)

    reading = asyncio.create_task(asyncio.to_thread(read_on))
    for n in range(10):
        await log.append(Kind.ENGAGEMENTS, engagements([f"more {n}"]))
        await log.compact(TODAY + timedelta(days=1))
    done.set()
    await reading
    assert not wrong


_APPEND_FOREVER = """
import asyncio, sys
from pathlib import Path
from stores.log.parquet import ParquetLog
from stores.log.port import Kind
from tests.stores.test_log import served

async def main():
    log = ParquetLog(Path(sys.argv[1]))
    for n in range(100_000):
        await log.append(Kind.SERVED, served([f"{n}"], 50))
        print(n, flush=True)

asyncio.run(main())
"""


def test_what_was_appended_outlives_kill_9(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _APPEND_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    acknowledged = [next(process.stdout).strip() for _ in range(20)]
    process.kill()
    acknowledged += process.stdout.read().split()
    process.wait()
    read = ids(ParquetLog(tmp_path).read(Kind.SERVED))
    # At most the one being appended is there besides; each is whole.
    assert set(acknowledged) <= set(read)
    assert len(set(read)) <= len(acknowledged) + 1
    assert len(read) == 50 * len(set(read))


@settings(deadline=None, max_examples=30)
@given(st.lists(st.lists(st.sampled_from("abcdef"), max_size=8), max_size=5))
def test_each_event_is_read_once_however_it_came(batches: list[list[str]]) -> None:
    async def check(root: Path) -> None:
        log = ParquetLog(root)
        # The same event is of the same day, always.
        for batch in batches:
            tables = [served([event], 2, NOON + timedelta(days=ord(event) % 3)) for event in batch]
            await log.append(Kind.SERVED, pa.concat_tables([served([], 0), *tables]))
        expected = sorted(2 * list({event for batch in batches for event in batch}))
        for _ in range(2):
            assert sorted(ids(log.read(Kind.SERVED))) == expected
            await log.compact(TODAY + timedelta(days=2))

    with tempfile.TemporaryDirectory() as root:
        asyncio.run(check(Path(root) / uuid4().hex))


def test_the_log_has_what_the_ranker_knows() -> None:
    assert schemas.DENSE == features.DENSE
