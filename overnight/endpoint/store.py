"""What survives a kill: files on disk, batches and finished lines in SQLite (WAL).

One connection, used from one thread (the server's event loop): a write is one short transaction, so it needs neither
locks nor a thread hop. `synchronous=NORMAL` keeps every commit through the death of the process; only a power cut can
take the last commits, and never half of one.
"""

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final

from overnight.endpoint.lines import ResultLine
from overnight.endpoint.records import OPEN_STATUSES, Batch, StoredFile

SCHEMA_VERSION: Final = 1

_BATCH_COLUMNS: Final = ", ".join(field.name for field in fields(Batch))
_FILE_COLUMNS: Final = ", ".join(field.name for field in fields(StoredFile))

# `position` is the order of creation; AUTOINCREMENT never gives a deleted row's position to another.
_SCHEMA: Final = """
CREATE TABLE files (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, bytes INTEGER NOT NULL, created_at INTEGER NOT NULL,
    filename TEXT NOT NULL, purpose TEXT NOT NULL
);
CREATE TABLE batches (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE, status TEXT NOT NULL, endpoint TEXT NOT NULL,
    input_file_id TEXT NOT NULL, completion_window TEXT NOT NULL,
    created_at INTEGER NOT NULL, expires_at INTEGER NOT NULL,
    metadata TEXT, errors TEXT, model TEXT, output_file_id TEXT, error_file_id TEXT,
    in_progress_at INTEGER, finalizing_at INTEGER, completed_at INTEGER, failed_at INTEGER,
    expired_at INTEGER, cancelling_at INTEGER, cancelled_at INTEGER,
    total INTEGER NOT NULL, completed INTEGER NOT NULL, failed INTEGER NOT NULL,
    input_tokens INTEGER NOT NULL, cached_tokens INTEGER NOT NULL, output_tokens INTEGER NOT NULL,
    reasoning_tokens INTEGER NOT NULL, total_tokens INTEGER NOT NULL
);
CREATE INDEX batches_by_status ON batches (status);
CREATE TABLE results (
    batch_id TEXT NOT NULL, line INTEGER NOT NULL, succeeded INTEGER NOT NULL, data BLOB NOT NULL,
    PRIMARY KEY (batch_id, line)
);
"""


class DataError(RuntimeError):
    """The data directory cannot be used; the message says what to do."""


class UnknownCursorError(LookupError):
    """The `after` of a list request names nothing in the list."""


class Store:
    """The data directory: `endpoint.sqlite` and `files/<file id>`."""

    def __init__(self, directory: Path) -> None:
        """Open the directory, creating what is missing and removing what an interrupted write left.

        Raises:
            DataError: the database was written by another version of the server.
        """
        self.files = directory / "files"
        self.files.mkdir(parents=True, exist_ok=True)
        self.database = directory / "endpoint.sqlite"
        self._connection = sqlite3.connect(self.database, isolation_level=None)
        self._connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA busy_timeout=10000;")
        self._create_schema()
        self._remove_leftovers()

    def close(self) -> None:
        """Close the database."""
        self._connection.close()

    def path(self, file_id: str) -> Path:
        """Return where a stored file's bytes are; only ids read from the database may be given."""
        return self.files / file_id

    def add_file(self, file: StoredFile) -> None:
        """Register a file whose bytes are in place already."""
        self._insert("files", asdict(file))

    def file(self, file_id: str) -> StoredFile | None:
        """Return a file's row."""
        row = self._connection.execute(f"SELECT {_FILE_COLUMNS} FROM files WHERE id = ?", (file_id,)).fetchone()  # noqa: S608 - own column names
        return StoredFile(*row) if row else None

    def list_files(self, purpose: str | None, after: str | None, limit: int, newest_first: bool) -> list[StoredFile]:
        """Return up to `limit` files after the one named.

        Raises:
            UnknownCursorError: no file has the id `after`.
        """
        condition, values = ("purpose = ?", [purpose]) if purpose else ("1", [])
        rows = self._list(
            "files", _FILE_COLUMNS, condition, values, after=after, limit=limit, newest_first=newest_first
        )
        return [StoredFile(*row) for row in rows]

    def delete_file(self, file_id: str) -> None:
        """Delete a file, its row first: bytes without a row are swept at the next start."""
        self._connection.execute("DELETE FROM files WHERE id = ?", (file_id,))
        self.path(file_id).unlink(missing_ok=True)

    def open_batch_of(self, file_id: str) -> str | None:
        """Return the id of an open batch that reads this file."""
        marks = ", ".join("?" * len(OPEN_STATUSES))
        query = f"SELECT id FROM batches WHERE input_file_id = ? AND status IN ({marks}) LIMIT 1"  # noqa: S608 - question marks
        row = self._connection.execute(query, (file_id, *OPEN_STATUSES)).fetchone()
        return str(row[0]) if row else None

    def add_batch(self, batch: Batch) -> None:
        """Register a new batch."""
        self._insert("batches", asdict(batch))

    def batch(self, batch_id: str) -> Batch | None:
        """Return a batch's row."""
        row = self._connection.execute(f"SELECT {_BATCH_COLUMNS} FROM batches WHERE id = ?", (batch_id,)).fetchone()  # noqa: S608 - own column names
        return Batch(*row) if row else None

    def list_batches(self, after: str | None, limit: int) -> list[Batch]:
        """Return up to `limit` batches after the one named, newest first.

        Raises:
            UnknownCursorError: no batch has the id `after`.
        """
        rows = self._list("batches", _BATCH_COLUMNS, "1", [], after=after, limit=limit, newest_first=True)
        return [Batch(*row) for row in rows]

    def open_batches(self) -> list[Batch]:
        """Return the batches that still need work, oldest first."""
        marks = ", ".join("?" * len(OPEN_STATUSES))
        query = f"SELECT {_BATCH_COLUMNS} FROM batches WHERE status IN ({marks}) ORDER BY position"  # noqa: S608 - own column names
        return [Batch(*row) for row in self._connection.execute(query, OPEN_STATUSES)]

    def advance(self, batch_id: str, from_status: str, **changes: Any) -> bool:
        """Change a batch that is still in `from_status`; return whether it was."""
        assignments = ", ".join(f"{column} = :{column}" for column in changes)
        query = f"UPDATE batches SET {assignments} WHERE id = :_id AND status = :_from"  # noqa: S608 - own column names
        cursor = self._connection.execute(query, {**changes, "_id": batch_id, "_from": from_status})
        return cursor.rowcount == 1

    def record(self, batch_id: str, line: int, result: ResultLine) -> None:
        """Commit a finished line together with the batch's counts."""
        count = "completed" if result.succeeded else "failed"
        tokens = ", ".join(f"{name} = {name} + :{name}" for name in result.usage._fields)
        update = f"UPDATE batches SET {count} = {count} + 1, {tokens} WHERE id = :id"  # noqa: S608 - own column names
        with self._transaction():
            row = (batch_id, line, result.succeeded, result.data)
            self._connection.execute("INSERT INTO results VALUES (?, ?, ?, ?)", row)
            self._connection.execute(update, {**result.usage._asdict(), "id": batch_id})

    def finished_lines(self, batch_id: str) -> set[int]:
        """Return the numbers of the lines that have a result."""
        query = "SELECT line FROM results WHERE batch_id = ?"
        return {number for (number,) in self._connection.execute(query, (batch_id,))}

    def close_batch(self, batch_id: str, from_status: str, outputs: Sequence[StoredFile], **changes: Any) -> bool:
        """Register the result files, change the batch and drop its stored lines, all or nothing."""
        with self._transaction():
            for file in outputs:
                self._insert("files", asdict(file))
            advanced = self.advance(batch_id, from_status, **changes)
            self._connection.execute("DELETE FROM results WHERE batch_id = ?", (batch_id,))
        return advanced

    def _list(
        self,
        table: str,
        columns: str,
        condition: str,
        values: list[Any],
        *,
        after: str | None,
        limit: int,
        newest_first: bool,
    ) -> list[Any]:
        order, compare = ("DESC", "<") if newest_first else ("ASC", ">")
        if after is not None:
            position = self._connection.execute(f"SELECT position FROM {table} WHERE id = ?", (after,)).fetchone()  # noqa: S608 - own table names
            if position is None:
                raise UnknownCursorError(after)
            condition, values = f"{condition} AND position {compare} ?", [*values, position[0]]
        query = f"SELECT {columns} FROM {table} WHERE {condition} ORDER BY position {order} LIMIT ?"  # noqa: S608 - as above
        return self._connection.execute(query, (*values, limit)).fetchall()

    def _insert(self, table: str, values: dict[str, Any]) -> None:
        columns, places = ", ".join(values), ", ".join(f":{name}" for name in values)
        self._connection.execute(f"INSERT INTO {table} ({columns}) VALUES ({places})", values)  # noqa: S608 - own names

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def _create_schema(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise DataError(
                f"{self.database} has schema {version}, this server needs {SCHEMA_VERSION}: "
                "start the version that wrote it, or give another --data directory"
            )

    def _remove_leftovers(self) -> None:
        known = {file_id for (file_id,) in self._connection.execute("SELECT id FROM files")}
        for path in self.files.iterdir():
            if path.name not in known:
                path.unlink()


def stored_results(database: Path, batch_id: str) -> Iterator[tuple[int, bool, bytes]]:
    """Yield (line number, succeeded, JSON line) of a batch in line order, over a connection of its own."""
    query = "SELECT line, succeeded, data FROM results WHERE batch_id = ? ORDER BY line"
    with closing(sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)) as connection:
        for line, succeeded, data in connection.execute(query, (batch_id,)):
            yield line, bool(succeeded), data
