"""The log of feeds as Parquet files: `<root>/<kind>/day=YYYY-MM-DD/*.parquet`.

Files are complete or not there at all, and never changed. All rows of an event lie in one file, so
that an event met in an earlier file is known for a repeat.
"""

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import ParamSpec, TypeVar
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mesh import telemetry
from mesh.errors import Unavailable
from stores.durable import sync
from stores.log.port import Kind
from stores.log.schemas import KEY, SCHEMAS, TIME

P = ParamSpec("P")
T = TypeVar("T")

_MS_PER_DAY = 86_400_000
_DAY = "day="
# Rows that a compacted file has in a group, which is what a reader holds at once.
_GROUP_ROWS = 200_000
# After this long nobody writes an unfinished file any more.
_ABANDONED_S = 3600.0
_TRIES = 10


class ParquetLog:
    """`stores.log.port.FeedLog` in a folder. Any number of processes may append to it.

    Args:
        root: Made when the first rows come.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    async def append(self, kind: Kind, rows: pa.Table) -> None:
        """As the port says; a file for each day."""
        schema = SCHEMAS[kind]
        if rows.schema.names != schema.names:
            raise ValueError(f"rows of {kind} have the columns {rows.schema.names}")
        rows = rows.cast(schema)
        with telemetry.span(
            f"append {kind}", attributes={"feed.log.kind": str(kind), "feed.log.rows": len(rows)}
        ):
            await _in_thread(self._append, kind, rows)

    async def compact(self, before: date) -> int:
        return await _in_thread(self._compact, before)

    async def forget(self, before: date) -> int:
        return await _in_thread(self._forget, before)

    def days(self, kind: Kind) -> list[date]:
        try:
            names = os.listdir(self._root / kind)
        except FileNotFoundError:
            return []
        return sorted(date.fromisoformat(n[len(_DAY) :]) for n in names if n.startswith(_DAY))

    def read(
        self,
        kind: Kind,
        first: date | None = None,
        last: date | None = None,
        columns: Sequence[str] | None = None,
    ) -> pa.Table:
        names = list(columns) if columns is not None else SCHEMAS[kind].names
        schema = pa.schema([SCHEMAS[kind].field(name) for name in names])
        tables = [
            table
            for day in self.days(kind)
            if (first is None or first <= day) and (last is None or day <= last)
            for table in self._day(kind, day, names)
        ]
        return pa.concat_tables([schema.empty_table(), *tables])

    def _day(self, kind: Kind, day: date, names: Sequence[str]) -> list[pa.Table]:
        """The rows of a day, each once."""
        for _ in range(_TRIES):
            # Else it was compacted since it was listed: the rows are in another file now.
            with suppress(FileNotFoundError):
                fresh = _fresh(self._files(kind, day), kind, names)
                return [table.select(names) for table in fresh]
        raise Unavailable(f"the files of {kind} of {day} change all the time")

    def _append(self, kind: Kind, rows: pa.Table) -> None:
        rows = _distinct(rows, kind)
        days = rows[TIME[kind]].cast(pa.int64()).to_numpy() // _MS_PER_DAY
        for number in np.unique(days):
            day = datetime.fromtimestamp(int(number) * 86_400, UTC).date()
            with _Writing(self._folder(kind, day), SCHEMAS[kind]) as file:
                file.write(rows.filter(pa.array(days == number)))

    def _compact(self, before: date) -> int:
        joined = 0
        for kind in Kind:
            for day in self.days(kind):
                if day < before:
                    joined += self._compact_day(kind, day)
        return joined

    def _compact_day(self, kind: Kind, day: date) -> int:
        folder = self._folder(kind, day)
        _sweep(folder)
        files = self._files(kind, day)
        if len(files) < 2:
            return 0
        with _Writing(folder, SCHEMAS[kind]) as file:
            for table in _fresh(files, kind, SCHEMAS[kind].names):
                file.write(table)
        for each in files:
            each.unlink()
        return len(files)

    def _forget(self, before: date) -> int:
        forgotten: set[date] = set()
        for kind in Kind:
            for day in self.days(kind):
                if day < before:
                    shutil.rmtree(self._folder(kind, day))
                    forgotten.add(day)
        return len(forgotten)

    def _folder(self, kind: Kind, day: date) -> Path:
        return self._root / kind / f"{_DAY}{day.isoformat()}"

    def _files(self, kind: Kind, day: date) -> list[Path]:
        """What begins with a dot is not finished."""
        return sorted(self._folder(kind, day).glob("[!.]*.parquet"))


class _Writing:
    """A file being written: there, and durable, when the block ends well.

    Args:
        folder: Made where it is missing.
        schema: Of the file.
    """

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        name = f"{time.time_ns() // 1_000_000}-{uuid4().hex}.parquet"
        self._unfinished, self._path = folder / f".{name}", folder / name
        self._schema = schema
        self._waiting: list[pa.Table] = []
        for each in reversed([folder, *folder.parents]):
            if not each.exists():
                each.mkdir(exist_ok=True)
                sync(each.parent)
        self._writer = pq.ParquetWriter(self._unfinished, schema, compression="zstd")

    def __enter__(self) -> "_Writing":
        return self

    def write(self, table: pa.Table) -> None:
        """Adds rows; small tables are gathered."""
        self._waiting.append(table)
        if sum(map(len, self._waiting)) >= _GROUP_ROWS:
            self._flush()

    def __exit__(self, failed: type[BaseException] | None, *_: object) -> None:
        try:
            if failed is None:
                self._flush()
            self._writer.close()
            if failed is None:
                sync(self._unfinished)
                self._unfinished.rename(self._path)
                sync(self._path.parent)
        finally:
            self._unfinished.unlink(missing_ok=True)

    def _flush(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting), _GROUP_ROWS)
            self._waiting = []


def _fresh(files: Sequence[Path], kind: Kind, names: Sequence[str]) -> Iterator[pa.Table]:
    """The files' rows, but those of events that were in an earlier one."""
    columns = list(dict.fromkeys([*names, "event_id"]))
    schema = pa.schema([SCHEMAS[kind].field(name) for name in columns])
    seen: set[str] = set()
    for file in files:
        met: set[str] = set()
        source = pq.ParquetFile(file)
        there = [name for name in columns if name in source.schema_arrow.names]
        for batch in source.iter_batches(_GROUP_ROWS, columns=there):
            table = _completed(pa.Table.from_batches([batch]), schema)
            ids = table["event_id"].unique().to_pylist()
            repeats = [each for each in ids if each in seen]
            met.update(ids)
            if repeats:
                known = pc.is_in(table["event_id"], pa.array(repeats, pa.string()))
                table = table.filter(pc.invert(known))
            yield table
        seen |= met


def _completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """With nulls in the columns that came to the schema after the file was written."""
    for field in schema:
        if field.name not in table.schema.names:
            table = table.append_column(field, pa.nulls(len(table), field.type))
    return table.select(schema.names).cast(schema)


def _distinct(rows: pa.Table, kind: Kind) -> pa.Table:
    """The rows without repeats: of those with the same key, the first."""
    numbered = rows.select(KEY[kind]).append_column("row", pa.array(np.arange(len(rows))))
    kept = numbered.group_by(KEY[kind]).aggregate([("row", "min")])["row_min"]
    return rows if len(kept) == len(rows) else rows.take(np.sort(kept.to_numpy()))


def _sweep(folder: Path) -> None:
    """Removes what a crash left unfinished."""
    for file in folder.glob(".*.parquet"):
        with suppress(FileNotFoundError):
            if file.stat().st_mtime < time.time() - _ABANDONED_S:
                file.unlink()


async def _in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    try:
        return await asyncio.to_thread(partial(work, *args, **kwargs))
    except OSError as error:
        raise Unavailable(f"the log of feeds failed: {error.strerror}") from error
