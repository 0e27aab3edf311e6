"""Rows in: csv, parquet or jsonl files, or a query over them, streamed as Arrow record batches with one schema.

Text formats are read twice: once to settle what every column holds over all files (types guessed from the first
megabyte break a run in its middle), once for the rows.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.errors import DatasetError, Problem
from overnight.job.job import Dataset
from overnight.rows.columns import Column, kept_column, whole_numbers
from overnight.rows.delimited import Delimited
from overnight.rows.files import File, find_files
from overnight.rows.fragments import (
    BATCH_ROWS,
    REQUEST_LINES,
    Fragment,
    Reader,
    RequestLines,
    first_line,
    parquet_fragments,
)
from overnight.rows.json_lines import JsonLines
from overnight.store.objects import address, version_of

Format = Literal["csv", "parquet", "jsonl"]
_ENDINGS: dict[str, Format] = {
    "csv": "csv", "tsv": "csv", "tab": "csv", "psv": "csv", "parquet": "parquet", "pq": "parquet",
    "jsonl": "jsonl", "ndjson": "jsonl", "json": "jsonl",
}  # fmt: skip
_PACKED = 4
"""About how much larger a compressed text is."""
_PANDAS_TYPES = "pandas.core.arrays.arrow.extension_types"
"""Makes intervals and periods known to Arrow. A file that holds them has to print the same in every process, whatever
else was imported there."""


@dataclass(frozen=True)
class Rows:
    """An opened dataset: its columns, and its rows as often as they are asked for."""

    schema: pa.Schema
    """As the rows are read, and as prompts see them: text where no type prints a value as it stands in its file."""
    kept: pa.Schema
    """The same columns as the joined table has them."""
    fingerprint: str
    """Changes when a file is added, removed or written: names, sizes and times of all files. Empty: nobody knows."""
    read: Callable[[], Iterator[pa.RecordBatch]]
    fragments: tuple[Fragment, ...] = ()
    """The same rows in pieces that can be read alone; none where they come as one."""

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most `BATCH_ROWS` at a time."""
        for batch in self.read():
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)

    def keep(self, batch: pa.RecordBatch) -> list[pa.Array]:
        """The columns of some rows as the joined table has them.

        Raises:
            DatasetError: a value does not fit its column, which it did when the columns were settled.
        """
        try:
            return [
                kept_column(column, field, kept.type)
                for column, field, kept in zip(batch.columns, self.schema, self.kept, strict=True)
            ]
        except pa.ArrowException as error:
            raise DatasetError(f"the dataset changed while it was read: {first_line(error)}") from None


class _TextFile(Protocol):
    """A file whose columns show what they hold when all of it was read."""

    names: list[str]

    def look(self, columns: dict[str, Column]) -> None: ...

    def rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]: ...


def first_rows(rows: Rows, count: int) -> Rows:
    """Only the first rows of a dataset."""

    def read() -> Iterator[pa.RecordBatch]:
        left = count
        for batch in rows.read():
            yield batch.slice(0, left)
            if (left := left - batch.num_rows) <= 0:
                return

    return Rows(rows.schema, rows.kept, rows.fingerprint and f"{rows.fingerprint} first {count}", read)


def open_dataset(dataset: Dataset, *, request_lines: bool = False) -> Rows:
    """Finds the files and settles the schema.

    Args:
        dataset: where the rows are.
        request_lines: read a batch JSONL file line by line (`REQUEST_LINES`), whatever the lines hold.

    Raises:
        DatasetError: nothing there, no rows, an unreadable file, or files whose columns differ.
    """
    rows = _opened(dataset, request_lines=request_lines)
    if next((batch for batch in rows.batches() if batch.num_rows), None) is None:
        raise DatasetError(f"the dataset {dataset.name} has no rows")
    if twice := _twice(rows.schema.names):
        raise DatasetError(f"the dataset {dataset.name} has two columns named {', '.join(map(repr, twice))}")
    if absent := [key for key in dataset.key if key not in rows.schema.names]:
        columns = ", ".join(rows.schema.names)
        raise DatasetError(f"dataset.key names {', '.join(absent)}; the columns are: {columns}")
    return rows


def _opened(dataset: Dataset, *, request_lines: bool) -> Rows:
    if dataset.sql is not None:
        from overnight.rows.query import open_query  # noqa: PLC0415 - DuckDB is for who asks for it

        schema, read = open_query(dataset)
        return Rows(schema, schema, "", read)
    files = find_files(dataset.path, frozenset(_ENDINGS))
    schema = kept = REQUEST_LINES
    found = [_whole(file, RequestLines(file)) for file in files]
    if not request_lines:
        match _format(dataset, files):
            case "parquet":
                schema, kept, found = _parquet(files)
            case "csv":
                schema, kept, found = _text(files, [_guarded(file, Delimited, dataset) for file in files], "csv")
            case "jsonl":
                schema, kept, found = _text(files, [JsonLines(file, dataset.encoding) for file in files], "jsonl")
        schema, kept = _with_partitions(schema, files), _with_partitions(kept, files)
    fragments = tuple(replace(one, schema=schema) for one in found)
    return Rows(
        schema, kept, _fingerprint(files), lambda: chain.from_iterable(map(Fragment.batches, fragments)), fragments
    )


def _whole(file: File, reader: Reader) -> Fragment:
    size = int(file.filesystem.info(file.path).get("size") or 0)
    return Fragment(file, pa.schema([]), reader, size * _PACKED if file.compression else size)


def _format(dataset: Dataset, files: list[File]) -> Format:
    if dataset.format != "auto":
        return dataset.format
    found = {_ENDINGS.get(file.kind) for file in files}
    if len(found) == 1 and (only := found.pop()):
        return only
    names = ", ".join(sorted({f".{file.kind}" for file in files}))
    raise DatasetError(f"{dataset.path}: files of one format are needed, csv, parquet or jsonl, not {names}; "
                       "name it with dataset.format, or narrow dataset.path")  # fmt: skip


def _guarded(file: File, make: Callable[[File, Dataset], Delimited], dataset: Dataset) -> Delimited:
    try:
        return make(file, dataset)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"cannot read {file.path}: {first_line(error)}") from None


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _text(files: list[File], opened: Sequence[_TextFile], kind: Format) -> tuple[pa.Schema, pa.Schema, list[Fragment]]:
    """Settles the columns of text files: as they are read, and as they are kept."""
    columns: dict[str, Column] = {}
    for file, one in zip(files, opened, strict=True):
        if twice := _twice(one.names):
            raise DatasetError(f"{file.path} has two columns named {', '.join(map(repr, twice))}")
    if kind == "csv":
        _check_headers(files, opened)
    for file, one in zip(files, opened, strict=True):
        columns |= {name: Column(name) for name in one.names if name not in columns}
        try:
            one.look(columns)
        except (pa.ArrowException, OSError) as error:
            raise DatasetError(f"cannot read {file.path}: {first_line(error)}") from None
    settled = [column.settle() for column in columns.values()]
    schema = pa.schema([column.read for column in settled])
    kept = pa.schema([column.read.remove_metadata().with_type(column.kept) for column in settled])
    return schema, kept, list(map(_whole, files, opened))


def _check_headers(files: list[File], opened: Sequence[_TextFile]) -> None:
    """A header is a promise: a file with another one is more likely another table. An empty file says nothing."""
    named = [(file, one.names) for file, one in zip(files, opened, strict=True) if one.names]
    problems = [
        Problem(file.path, f"its columns differ from {named[0][0].path}: "
                + ", ".join(sorted(set(named[0][1]) ^ set(names))))
        for file, names in named
        if set(names) != set(named[0][1])
    ]  # fmt: skip
    if problems:
        raise DatasetError("the files of the dataset do not have the same columns:", problems)


def _parquet(files: list[File]) -> tuple[pa.Schema, pa.Schema, list[Fragment]]:
    """The columns of all files; one that a file lacks is null there. Of one file, pandas' index and types are kept."""
    footers = [_footer(file) for file in files]
    schemas = [_parquet_schema(footer) for footer in footers]
    pandas = {b"pandas": about} if len(files) == 1 and (about := (schemas[0].metadata or {}).get(b"pandas")) else None
    for file, schema in zip(files, schemas, strict=True):
        if twice := _twice(schema.names):
            raise DatasetError(f"{file.path} has two columns named {', '.join(map(repr, twice))}")
    types: dict[str, set[pa.DataType]] = {}
    for schema in schemas:
        for field in schema:
            types.setdefault(field.name, set()).add(field.type)
    plain = [pa.schema([_decoded(f, types[f.name]).remove_metadata() for f in schema]) for schema in schemas]
    try:
        common = pa.unify_schemas(plain, promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(
            f"the files of the dataset have columns of different types: {first_line(error)}; narrow dataset.path, or "
            "cast them in a dataset.sql"
        ) from None
    common = pa.schema([pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in common])
    pieces = (parquet_fragments(file, footer, common) for file, footer in zip(files, footers, strict=True))
    return common, common.with_metadata(pandas), list(chain.from_iterable(pieces))


def _decoded(field: pa.Field, types: set[pa.DataType]) -> pa.Field:
    """Dictionary-encoded in one file and plain in the next: the values are what both have."""
    if len(types) > 1 and pa.types.is_dictionary(field.type):
        return field.with_type(field.type.value_type)
    return field


def _footer(file: File) -> pq.FileMetaData:
    try:
        with file.open() as stream:
            return pq.read_metadata(stream)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"cannot read {file.path}: {first_line(error)}") from None


def _parquet_schema(footer: pq.FileMetaData) -> pa.Schema:
    schema: pa.Schema = footer.schema.to_arrow_schema()
    kept_by = [(field.metadata or {}).get(b"ARROW:extension:name", b"") for field in schema]
    if _PANDAS_TYPES not in sys.modules and any(name.startswith(b"pandas.") for name in kept_by):
        import_module(_PANDAS_TYPES)
        schema = footer.schema.to_arrow_schema()
    return schema


def _with_partitions(schema: pa.Schema, files: list[File]) -> pa.Schema:
    """The columns, and after them those that the folders name; a column of the files wins."""
    names = dict.fromkeys(name for file in files for name, _ in file.partitions)
    for name in names:
        if name not in schema.names:
            values = pa.array([dict(file.partitions).get(name) for file in files], pa.string())
            schema = schema.append(pa.field(name, pa.int64() if whole_numbers(values) else pa.string()))
    return schema


def _fingerprint(files: list[File]) -> str:
    seen = hashlib.blake2b(digest_size=16)
    for file in files:
        if (version := version_of(Path(file.path))) is not None:  # its path, and its time, are of a working copy
            seen.update(repr((address(Path(file.path)), version)).encode())
            continue
        about = file.filesystem.info(file.path)
        stamp = next((about[key] for key in ("ETag", "etag", "e_tag", "mtime", "LastModified") if key in about), None)
        seen.update(repr((file.path, about.get("size"), str(stamp))).encode())
    return seen.hexdigest()
