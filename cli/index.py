"""What an installation has imported: external ids, and how far each file came.

A small SQLite file, FEED_DATA_DIR/imports.db. A batch is written here, in one transaction, after
every store has acknowledged it. A batch that was cut off is therefore loaded again, into the same
ids, which changes nothing where it had arrived.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path
from typing import Literal, NamedTuple, Self

_SCHEMA = """
CREATE TABLE IF NOT EXISTS users (external TEXT PRIMARY KEY, id INTEGER UNIQUE) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS posts (external TEXT PRIMARY KEY, id INTEGER UNIQUE, author INTEGER)
  WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS files (
  digest TEXT PRIMARY KEY, started_at_ms INTEGER, offset INTEGER, line INTEGER, tally TEXT);
CREATE TABLE IF NOT EXISTS touched (kind TEXT, id INTEGER, PRIMARY KEY (kind, id)) WITHOUT ROWID;
"""

Touched = Literal["post", "author", "reader"]


class KnownPost(NamedTuple):
    """An imported post and its author, by feedmesh's ids."""

    post_id: int
    author_id: int


@dataclass(slots=True)
class FileState:
    """How far a file came. Its tally counts lines by "kind outcome"."""

    digest: str
    started_at_ms: int
    offset: int = 0
    line: int = 0
    tally: Counter[str] = field(default_factory=Counter)


class Index:
    """Use it as a context manager; calls may come from any thread, one at a time.

    Args:
        path: The file; made when it is missing.

    Raises:
        OSError: Another import has it open.
    """

    def __init__(self, path: Path) -> None:
        self._lock = path.with_suffix(".lock").open("w")
        try:
            flock(self._lock, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise OSError(f"another import into {path.parent} is running; wait for it") from None
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode = WAL")
        # The stores were told to be durable before; the index must not lag behind them by more
        # than the batch that is being loaded.
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.executescript(_SCHEMA)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
        self._lock.close()

    def user(self, external: str) -> int | None:
        """The user's feedmesh id."""
        row = self._one("SELECT id FROM users WHERE external = ?", external)
        return None if row is None else row[0]

    def post(self, external: str) -> KnownPost | None:
        row = self._one("SELECT id, author FROM posts WHERE external = ?", external)
        return None if row is None else KnownPost(*row)

    def is_user_id(self, user_id: int) -> bool:
        """Whether an imported user has this feedmesh id."""
        return self._one("SELECT 1 FROM users WHERE id = ?", user_id) is not None

    def post_by_id(self, post_id: int) -> KnownPost | None:
        """The imported post with this feedmesh id."""
        row = self._one("SELECT id, author FROM posts WHERE id = ?", post_id)
        return None if row is None else KnownPost(*row)

    def begin(self, digest: str, now_ms: int) -> FileState:
        """Where the file with this digest stopped, or its beginning."""
        self._db.execute("INSERT OR IGNORE INTO files VALUES (?, ?, 0, 0, '{}')", (digest, now_ms))
        query = "SELECT started_at_ms, offset, line, tally FROM files WHERE digest = ?"
        started_at_ms, offset, line, tally = self._db.execute(query, (digest,)).fetchone()
        return FileState(digest, started_at_ms, offset, line, Counter(json.loads(tally)))

    def commit(
        self,
        state: FileState,
        users: Mapping[str, int],
        posts: Mapping[str, KnownPost],
        touched: Iterable[tuple[Touched, int]],
    ) -> None:
        """Keeps a loaded batch and the file's new state, all or nothing."""
        with self._transaction():
            self._db.executemany("INSERT OR IGNORE INTO users VALUES (?, ?)", users.items())
            self._db.executemany(
                "INSERT OR IGNORE INTO posts VALUES (?, ?, ?)",
                ((external, *post) for external, post in posts.items()),
            )
            self._db.executemany("INSERT OR IGNORE INTO touched VALUES (?, ?)", touched)
            self._db.execute(
                "UPDATE files SET offset = ?, line = ?, tally = ? WHERE digest = ?",
                (state.offset, state.line, json.dumps(state.tally), state.digest),
            )

    def forget(self, digest: str) -> None:
        """The file will be read from its beginning; what was loaded of it stays known."""
        self._db.execute("DELETE FROM files WHERE digest = ?", (digest,))

    def touched(self, kind: Touched) -> list[int]:
        """What still has to be settled after the loading."""
        with closing(self._db.execute("SELECT id FROM touched WHERE kind = ?", (kind,))) as rows:
            return [row[0] for row in rows]

    def settled(self, kind: Touched, ids: Iterable[int]) -> None:
        with self._transaction():
            self._db.executemany(
                "DELETE FROM touched WHERE kind = ? AND id = ?", ((kind, each) for each in ids)
            )

    def _one(self, query: str, value: str | int) -> tuple[int, ...] | None:
        row: tuple[int, ...] | None = self._db.execute(query, (value,)).fetchone()
        return row

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
