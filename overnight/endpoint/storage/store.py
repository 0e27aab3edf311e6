"""What survives a kill: files on disk, batches and finished lines in SQLite (WAL).

One connection here, used from one thread (the server's event loop), and one in `recorder` for the finished lines. A
write is one short transaction. `synchronous=FULL` keeps every commit through a power cut too.
"""

import os
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, Final, NamedTuple

from overnight.endpoint.storage.records import OPEN_STATUSES, Batch, StoredFile

SCHEMA_VERSION: Final = 2

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


# From each schema to the next.
_MIGRATIONS: Final = {
    1: """
ALTER TABLE files ADD COLUMN expires_at INTEGER;
ALTER TABLE batches ADD COLUMN output_expires_after INTEGER;
ALTER TABLE batches ADD COLUMN off_peak TEXT;
ALTER TABLE batches ADD COLUMN off_peak_lines INTEGER NOT NULL DEFAULT 0;
ALTER TABLE batches ADD COLUMN off_peak_tokens INTEGER NOT NULL DEFAULT 0;
CREATE TABLE idempotency_keys (key TEXT PRIMARY KEY, digest BLOB NOT NULL, batch_id TEXT NOT NULL);
"""
}


_BUSY_MILLISECONDS: Final = 10_000
# secure_delete overwrites what is deleted with zeros: without it, answers stay in pages that are free.
_PRAGMAS: Final = f"""
PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA busy_timeout={_BUSY_MILLISECONDS}; PRAGMA secure_delete=ON;
"""


class DataError(RuntimeError):
    """The data directory cannot be used; the message says what to do."""


class UnknownCursorError(LookupError):
    """The `after` of a list request names nothing in the list."""


class Repeat(NamedTuple):
    """A creation that was asked for with an Idempotency-Key: a digest of what was asked, and what it made."""

    digest: bytes
    batch_id: str


def connect(database: Path) -> sqlite3.Connection:
    """Open the database for one thread at a time."""
    connection = sqlite3.connect(database, isolation_level=None, check_same_thread=False)
    connection.executescript(_PRAGMAS)
    return connection


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what the block does, or nothing of it."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def put_in_place(part: Path, target: Path) -> None:
    """Rename a file that is written and synced, and sync its directory: then a power cut leaves it there."""
    part.replace(target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


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
        self._connection = connect(self.database)
        self._bring_schema_up_to_date()
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

    def add_batch(self, batch: Batch, key: str | None = None, digest: bytes = b"") -> None:
        """Register a new batch, with the Idempotency-Key that it was asked for with."""
        with transaction(self._connection):
            self._insert("batches", asdict(batch))
            if key is not None:
                self._insert("idempotency_keys", {"key": key, "digest": digest, "batch_id": batch.id})

    def repeat_of(self, key: str) -> Repeat | None:
        """Return what an Idempotency-Key was used for."""
        query = "SELECT digest, batch_id FROM idempotency_keys WHERE key = ?"
        row = self._connection.execute(query, (key,)).fetchone()
        return Repeat(*row) if row else None

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

    def counts_by_status(self) -> dict[str, int]:
        """Return how many batches are in each status that occurs."""
        return dict(self._connection.execute("SELECT status, count(*) FROM batches GROUP BY status").fetchall())

    def finished_lines(self, batch_id: str) -> set[int]:
        """Return the numbers of the lines that have a result."""
        query = "SELECT line FROM results WHERE batch_id = ?"
        return {number for (number,) in self._connection.execute(query, (batch_id,))}

    def close_batch(self, batch_id: str, from_status: str, outputs: Sequence[StoredFile], **changes: Any) -> bool:
        """Register the result files, change the batch and drop its stored lines, all or nothing."""
        with transaction(self._connection):
            for file in outputs:
                self._insert("files", asdict(file))
            advanced = self.advance(batch_id, from_status, **changes)
            self._connection.execute("DELETE FROM results WHERE batch_id = ?", (batch_id,))
        return advanced

    def expired_files(self, now: int) -> list[str]:
        """Return the ids of the files whose time is over and that no open batch reads."""
        query = "SELECT id FROM files WHERE expires_at <= ?"
        ids = [str(file_id) for (file_id,) in self._connection.execute(query, (now,)).fetchall()]
        return [file_id for file_id in ids if not self.open_batch_of(file_id)]

    def forget_batches(self, before: int) -> int:
        """Delete the batches that ended before a time, with their Idempotency-Keys; return how many."""
        ended = "coalesce(completed_at, failed_at, expired_at, cancelled_at) < ?"
        batches = f"SELECT id FROM batches WHERE {ended}"  # noqa: S608 - own column names
        with transaction(self._connection):
            self._connection.execute(f"DELETE FROM idempotency_keys WHERE batch_id IN ({batches})", (before,))  # noqa: S608 - as above
            return self._connection.execute(f"DELETE FROM batches WHERE {ended}", (before,)).rowcount  # noqa: S608 - as above

    def empty_log(self) -> bool:
        """Take what the write-ahead log holds of deleted rows out of it; return False when others use it just now."""
        self._connection.execute("PRAGMA busy_timeout=0")
        try:
            busy, _, _ = self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self._connection.execute(f"PRAGMA busy_timeout={_BUSY_MILLISECONDS}")
        return not busy

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

    def _bring_schema_up_to_date(self) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise DataError(
                f"{self.database} has schema {version}, this server knows {SCHEMA_VERSION}: "
                "start the version that wrote it, or give another --data directory"
            )
        for step in range(version, SCHEMA_VERSION):
            change = _MIGRATIONS[step] if step else _SCHEMA
            self._connection.executescript(f"BEGIN; {change} PRAGMA user_version = {step + 1}; COMMIT;")

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
