"""How the SQL database behaves under load, locks, deadlines and cancellation."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, delete, func, insert, inspect, select, text

from mesh import deadlines
from mesh.errors import Unavailable
from stores.sql.database import Database
from stores.sql.migrate import alembic_config, migrate
from stores.sql.schema import until_migrated
from stores.sql.tables import metadata, pulled_authors
from tests.fixtures.sql import fresh_id, sqlite_url


@pytest_asyncio.fixture
async def other(sql_url: str) -> AsyncIterator[Database]:
    """The same database, as another process has it."""
    db = Database(sql_url)
    yield db
    await db.close()


@pytest_asyncio.fixture
async def file(sqlite: str) -> AsyncIterator[Database]:
    """A database in a file, for what only SQLite does."""
    db = Database(sqlite)
    yield db
    await db.close()


@pytest_asyncio.fixture
async def same_file(sqlite: str) -> AsyncIterator[Database]:
    """The same, as another process has it."""
    db = Database(sqlite)
    yield db
    await db.close()


async def add(db: Database, number: int) -> None:
    async with db.transaction() as connection:
        await connection.execute(insert(pulled_authors), {"author_id": number})


async def has(db: Database, number: int) -> bool:
    query = select(pulled_authors).where(pulled_authors.c.author_id == number)
    async with db.read() as connection:
        return (await connection.execute(query)).one_or_none() is not None


# -- migrations ---------------------------------------------------------------------------------


async def test_migrations_make_the_schema_of_the_tables(database: Database) -> None:
    def differences(connection: Connection) -> object:
        return compare_metadata(MigrationContext.configure(connection), metadata)

    async with database.read() as connection:
        assert await connection.run_sync(differences) == []


async def test_processes_may_migrate_at_once_and_again(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "new folder" / "feed.db")
    await asyncio.gather(*(migrate(url) for _ in range(4)))
    await migrate(url)
    db = Database(url)
    await add(db, 1)
    await db.close()


async def test_migrations_can_be_taken_back(tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "feed.db")
    await migrate(url)
    db = Database(url)

    def downgrade(connection: Connection) -> list[str]:
        command.downgrade(alembic_config(connection), "base")
        return inspect(connection).get_table_names()

    async with db.transaction() as connection:
        left = await connection.run_sync(downgrade)
    assert set(left) == {"alembic_version"}
    await db.close()


async def test_a_place_that_cannot_be_written_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    url = sqlite_url(tmp_path / "file" / "feed.db")
    with pytest.raises(Unavailable):
        await migrate(url)
    db = Database(url)
    with pytest.raises(Unavailable):
        await has(db, 1)
    with pytest.raises(Unavailable):
        await add(db, 1)
    await db.close()


# -- transactions -------------------------------------------------------------------------------


async def test_a_failed_transaction_leaves_nothing(database: Database) -> None:
    number = fresh_id()

    async def fail() -> None:
        async with database.transaction() as connection:
            await connection.execute(insert(pulled_authors), {"author_id": number})
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert not await has(database, number)


async def test_reading_connections_cannot_write(file: Database) -> None:
    number = fresh_id()
    with pytest.raises(Unavailable):
        async with file.read() as connection:
            await connection.execute(insert(pulled_authors), {"author_id": number})
    assert not await has(file, number)


@pytest.mark.parametrize("at", ["in a statement", "between statements"])
async def test_a_cancelled_transaction_rolls_back_and_gives_its_connection_back(
    database: Database, at: str
) -> None:
    number = fresh_id()

    async def write(under_way: asyncio.Event) -> None:
        async with database.transaction() as connection:
            await connection.execute(insert(pulled_authors), {"author_id": number})
            under_way.set()
            if at == "between statements":
                await asyncio.Event().wait()
            while True:
                await connection.execute(select(func.count()).select_from(pulled_authors))

    for _ in range(3):
        under_way = asyncio.Event()
        task = asyncio.create_task(write(under_way))
        await under_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not await has(database, number)
    await add(database, number)
    assert await has(database, number)


async def test_cancelled_reads_give_their_connections_back(database: Database) -> None:
    async def read() -> None:
        while True:
            await has(database, 1)

    tasks = [asyncio.create_task(read()) for _ in range(20)]
    for _ in range(5):
        await has(database, 1)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await asyncio.gather(*(has(database, 1) for _ in range(20)))


async def test_a_writer_waits_for_another_process_while_readers_do_not(
    file: Database, same_file: Database
) -> None:
    first, second = fresh_id(), fresh_id()
    async with same_file.transaction() as connection:
        await connection.execute(insert(pulled_authors), {"author_id": first})
        waiting = asyncio.create_task(add(file, second))
        assert not await has(file, first)
        # Longer than SQLite itself waits.
        done, _ = await asyncio.wait({waiting}, timeout=0.5)
        assert not done
    await waiting
    assert await has(file, first)
    assert await has(file, second)


async def test_a_lock_held_beyond_the_deadline_is_unavailable(
    file: Database, same_file: Database
) -> None:
    number = fresh_id()
    async with same_file.transaction():
        with deadlines.within(0.1), pytest.raises(Unavailable):
            await add(file, number)
    await add(file, number)


async def test_a_statement_ends_at_the_deadline(database: Database) -> None:
    with pytest.raises(Unavailable):
        async with database.read(timeout_s=0.05):
            await asyncio.Event().wait()
    assert not await has(database, fresh_id())


async def test_writes_of_several_processes_all_arrive(database: Database, other: Database) -> None:
    numbers = [fresh_id() for _ in range(60)]
    await asyncio.gather(*(add((database, other)[n % 2], n_) for n, n_ in enumerate(numbers)))
    async with database.transaction() as connection:
        removed = await connection.execute(
            delete(pulled_authors).where(pulled_authors.c.author_id.in_(numbers))
        )
    assert removed.rowcount == 60


async def test_what_was_acknowledged_survives_a_killed_process(
    database: Database, sql_url: str
) -> None:
    program = """
import asyncio, sys
from stores.sql.database import Database
from tests.stores.test_sql_database import add

async def main(url, first):
    db = Database(url)
    for number in range(first, first + 100_000):
        await add(db, number)
        print(number, flush=True)

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, sql_url, str(fresh_id())),
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    acknowledged = [int(await process.stdout.readline()) for _ in range(30)]
    process.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in (await process.stdout.read()).split(b"\n")[:-1]]
    await process.wait()
    for number in acknowledged:
        assert await has(database, number)
    # The dead writer's lock is gone with it.
    await add(database, fresh_id())


async def test_a_process_waits_for_the_schema_of_its_code(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/feed.db"
    database = Database(url)
    waiting = asyncio.create_task(until_migrated(database))
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done()
    await migrate(url)
    await asyncio.wait_for(waiting, 10)
    async with database.transaction() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    waiting = asyncio.create_task(until_migrated(database))
    await asyncio.wait({waiting}, timeout=0.2)
    assert not waiting.done(), "the schema of an older version"
    async with database.transaction() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await asyncio.wait_for(waiting, 10)
    await database.close()
