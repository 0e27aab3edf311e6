"""Parquet written in bounded memory: batches are gathered to row groups of a few megabytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.errors import LedgerError
from overnight.store.files import atomic_path
from overnight.store.threads import WriteBehind

_GROUP_ROWS = 8192
_GROUP_BYTES = 8 << 20
"""A row group is what one read brings into memory, and what the writer holds until it is full."""
READ_ROWS = 2048
_MANY_ROWS = 65_536
"""Of narrow tables: of ids."""


class TableWriter:
    """Writes record batches of one schema."""

    def __init__(self, writer: pq.ParquetWriter, behind: WriteBehind) -> None:
        self._writer, self._behind = writer, behind
        self._pending: list[pa.RecordBatch] = []
        self._rows = self._bytes = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Takes a batch; writes a row group when enough have gathered."""
        if not batch.num_rows:
            return
        self._pending.append(batch)
        self._rows += batch.num_rows
        self._bytes += batch.nbytes
        if self._rows >= _GROUP_ROWS or self._bytes >= _GROUP_BYTES:
            self.flush()

    def note(self, notes: dict[str, bytes]) -> None:
        """Keeps something beside the rows, in the footer: `notes_of` reads it."""
        self._behind.wait()
        self._writer.add_key_value_metadata(notes)

    def flush(self) -> None:
        """Hands on what has gathered: it is compressed and written while the next rows are made."""
        if self._pending:
            self._behind.hand(self._writer.write_table, pa.Table.from_batches(self._pending))
        self._pending, self._rows, self._bytes = [], 0, 0


@contextmanager
def write_parquet(path: Path, schema: pa.Schema) -> Iterator[TableWriter]:
    """Opens a table for writing; it takes its place when the block ends well."""
    with (
        atomic_path(path) as part,
        pq.ParquetWriter(part, schema, compression="zstd", write_page_checksum=True) as writer,
        closing(WriteBehind()) as behind,
    ):
        table = TableWriter(writer, behind)
        yield table
        table.flush()
        behind.wait()


@contextmanager
def open_parquet(path: Path) -> Iterator[pq.ParquetFile]:
    """Opens a table of ours for reading.

    Raises:
        LedgerError: it is damaged.
    """
    try:
        with pq.ParquetFile(path, pre_buffer=False, page_checksum_verification=True) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise LedgerError(f"{path} is damaged ({str(error).splitlines()[0]}): {_mend(path)}") from None


def _mend(path: Path) -> str:
    if path.parent.name == "results":
        return f"move it away and run the job again; it is made anew from {path.parent.with_name('responses')}"
    return "restore it from a backup, or run the job again where it is made anew by each run"


def read_batches(path: Path, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
    """Streams a table of ours."""
    with open_parquet(path) as opened:
        if lacking := set(columns or ()) - set(opened.schema_arrow.names):
            raise LedgerError(f"{path} is damaged (it has no column {', '.join(sorted(lacking))}): {_mend(path)}")
        rows = 0
        for batch in opened.iter_batches(batch_size=READ_ROWS, columns=columns, use_threads=False):
            rows += batch.num_rows
            yield batch
        check_rows(path, rows, opened.metadata.num_rows)


def notes_of(path: Path) -> dict[str, bytes]:
    """What a table of ours keeps beside its rows."""
    with open_parquet(path) as opened:
        return {name.decode(): value for name, value in (opened.metadata.metadata or {}).items()}


def read_rows(path: Path, first: int, count: int) -> Iterator[pa.RecordBatch]:
    """Streams some rows of a table of ours, many at a time; of its row groups it reads those that hold them."""
    with open_parquet(path) as opened:
        groups, skip, at = list[int](), 0, 0
        for number in range(opened.num_row_groups):
            rows = opened.metadata.row_group(number).num_rows
            if at + rows > first and at < first + count:
                skip = skip if groups else first - at
                groups.append(number)
            at += rows
        left = count
        for batch in opened.iter_batches(batch_size=_MANY_ROWS, row_groups=groups, use_threads=False) if groups else ():
            wanted = batch.slice(skip, left)
            skip, left = max(0, skip - batch.num_rows), left - wanted.num_rows
            if wanted.num_rows:
                yield wanted
        check_rows(path, count - left, count)


def check_rows(path: Path, found: int, expected: int) -> None:
    """Refuses a table with another number of rows than is known of it: its pages are checked, its footer is not.

    Raises:
        LedgerError: it is damaged.
    """
    if found != expected:
        raise LedgerError(f"{path} is damaged (it has {found:,} rows, not {expected:,}): {_mend(path)}")
