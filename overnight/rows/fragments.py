"""Fragments of a dataset: files, and groups of rows of Parquet files, each of which can be read without the others."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.errors import DatasetError
from overnight.rows.files import File
from overnight.rows.json_lines import line_blocks
from overnight.store.threads import read_ahead

BATCH_ROWS = 2048
"""Rows in memory at one time: with long texts a few megabytes, and enough to work column by column."""
_FRAGMENT_ROWS = 1 << 17
_FRAGMENT_BYTES = 128 << 20
"""Of a Parquet file, at least: a core renders as much in two seconds."""
_READ_BYTES = 1 << 20
REQUEST_LINES = pa.schema([pa.field("line", pa.int64()), pa.field("request", pa.string())])
"""Schema of a batch JSONL file read as a dataset: the line number from 1, and the line as it stands."""


class Reader(Protocol):
    """Reads what is in a fragment, and can be handed to another process."""

    def rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in their order, with those columns of the schema that the file has."""
        ...


@dataclass(frozen=True)
class Fragment:
    """One fragment."""

    file: File
    schema: pa.Schema
    """Of the dataset."""
    reader: Reader
    size: int
    """Bytes, about, as they are in memory."""
    start: int = 0
    end: int | None = None
    """Which bytes of the file it is; None: all the others."""
    layout: str = ""
    """What the file says of its columns elsewhere, where that is not among these bytes."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Its rows in their order, at most `BATCH_ROWS` at a time.

        Raises:
            DatasetError: the file cannot be read.
        """
        try:
            for batch in self.reader.rows(self.schema):
                whole = _completed(batch, self.schema, self.file)
                for start in range(0, whole.num_rows, BATCH_ROWS):
                    yield whole.slice(start, BATCH_ROWS)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"cannot read {self.file.path}: {first_line(error)}") from None

    def digest(self) -> str:
        """A hash of its bytes, and of the folders that name columns of it.

        Raises:
            DatasetError: the file cannot be read.
        """
        found = hashlib.blake2b(repr((self.file.kind, self.file.partitions, self.layout)).encode(), digest_size=16)
        try:
            with self.file.open() as stream:
                stream.seek(self.start)
                left = self.end - self.start if self.end is not None else sys.maxsize
                while chunk := stream.read(min(left, _READ_BYTES)):
                    found.update(chunk)
                    left -= len(chunk)
        except OSError as error:
            raise DatasetError(f"cannot read {self.file.path}: {first_line(error)}") from None
        return found.hexdigest()


@dataclass(frozen=True)
class RowGroups:
    """Some row groups of a Parquet file, one after the other."""

    file: File
    numbers: range

    def rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:  # noqa: ARG002 - the file has its own types
        """The rows, with all columns of the file."""
        with self.file.open() as stream:
            opened = pq.ParquetFile(stream, pre_buffer=False)
            batches = opened.iter_batches(batch_size=BATCH_ROWS, row_groups=[*self.numbers], use_threads=False)
            yield from read_ahead(map(_sound, batches))


def parquet_fragments(file: File, footer: pq.FileMetaData, schema: pa.Schema) -> Iterator[Fragment]:
    """A Parquet file in pieces of enough rows; each byte of the file is of one of them."""
    layout = footer.schema.to_arrow_schema().to_string()
    first = rows = size = start = 0
    for number in range(footer.num_row_groups):
        group = footer.row_group(number)
        rows, size = rows + group.num_rows, size + group.total_byte_size
        last = number == footer.num_row_groups - 1
        if rows >= _FRAGMENT_ROWS or size >= _FRAGMENT_BYTES or last:
            end = None if last else _start_of(footer.row_group(number + 1))
            yield Fragment(file, schema, RowGroups(file, range(first, number + 1)), size, start, end, layout)
            first, rows, size, start = number + 1, 0, 0, end or 0


def _start_of(group: pq.RowGroupMetaData) -> int:
    columns = [group.column(at) for at in range(group.num_columns)]
    offsets = [at for one in columns for at in (one.dictionary_page_offset, one.data_page_offset) if at]
    return min(offsets, default=0)


def _sound(batch: pa.RecordBatch) -> pa.RecordBatch:
    """A batch whose texts are UTF-8: writers of Parquet do not all see to it."""
    batch.validate(full=True)
    return batch


@dataclass(frozen=True)
class RequestLines:
    """A batch JSONL file, line by line, whatever the lines hold."""

    file: File

    def rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The lines that are not empty."""
        for block in line_blocks(self.file):
            numbered = list(enumerate(block.text.decode(errors="replace").split("\n")[:-1], block.first_line))
            kept = [(number, line) for number, line in numbered if line.strip()]
            if kept:
                columns = [pa.array(column) for column in zip(*kept, strict=True)]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)


def _completed(batch: pa.RecordBatch, schema: pa.Schema, file: File) -> pa.RecordBatch:
    """A file's rows with the columns of all files, in their types."""
    there, partitions = set(batch.schema.names), dict(file.partitions)
    columns = []
    for field in schema:
        if field.name in there:
            column = batch[field.name]
            columns.append(column if column.type == field.type else column.cast(field.type))
        else:
            value = pa.scalar(partitions.get(field.name)).cast(field.type)
            columns.append(pa.repeat(value, batch.num_rows))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def first_line(error: Exception) -> str:
    """What a library's error says first."""
    return str(error).strip().split("\n")[0]
