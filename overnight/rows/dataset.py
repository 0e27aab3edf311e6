"""Rows in: csv, parquet or jsonl files, streamed as Arrow record batches with one schema.

Text formats are read twice: once to settle the type of every column over all files (types guessed from the first
megabyte break a run in its middle), once for the rows.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq

from overnight.errors import DatasetError, Problem
from overnight.job.job import Dataset
from overnight.store.files import atomic_path

BATCH_ROWS = 2048
"""Rows in memory at one time: with long texts a few megabytes, and enough to work column by column."""
_BLOCK_BYTES = 4 << 20
_JSON_ROW = re.compile(r"in row (\d+)")

Format = Literal["csv", "parquet", "jsonl", "requests"]
_SUFFIXES: dict[str, Format] = {
    "csv": "csv", "parquet": "parquet", "pq": "parquet", "jsonl": "jsonl", "ndjson": "jsonl",
}  # fmt: skip
REQUEST_LINES = pa.schema([pa.field("line", pa.int64()), pa.field("request", pa.string())])
"""Schema of a batch JSONL file read as a dataset: the line number from 1, and the line as it stands."""


class File(NamedTuple):
    """One file of the dataset."""

    filesystem: Any
    path: str

    def open(self) -> io.BufferedIOBase:
        """Opens it for reading bytes."""
        return cast(io.BufferedIOBase, self.filesystem.open(self.path, "rb"))


@dataclass(frozen=True)
class Rows:
    """An opened dataset: its columns, and its rows as often as they are asked for."""

    schema: pa.Schema
    fingerprint: str
    """Changes when a file is added, removed or written: names, sizes and times of all files."""
    read: Callable[[], Iterator[pa.RecordBatch]]

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All rows in order, at most `BATCH_ROWS` at a time."""
        for batch in self.read():
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield batch.slice(start, BATCH_ROWS)


def first_rows(rows: Rows, count: int) -> Rows:
    """Only the first rows of a dataset."""

    def read() -> Iterator[pa.RecordBatch]:
        left = count
        for batch in rows.read():
            yield batch.slice(0, left)
            if (left := left - batch.num_rows) <= 0:
                return

    return Rows(rows.schema, f"{rows.fingerprint} first {count}", read)


def open_dataset(dataset: Dataset, *, request_lines: bool = False) -> Rows:
    """Finds the files and settles the schema.

    Args:
        dataset: where the rows are.
        request_lines: read a batch JSONL file line by line (`REQUEST_LINES`), whatever the lines hold.

    Raises:
        DatasetError: nothing there, no rows, an unreadable file, or files whose columns differ.
    """
    files = _find_files(dataset)
    kind: Format = "requests" if request_lines else _format(dataset, files)
    schema_of, read = _FORMATS[kind]
    schemas = [_guarded(file, schema_of) for file in files]
    schema = _common_schema(files, schemas, text_wins=kind == "csv")

    def all_rows() -> Iterator[pa.RecordBatch]:
        for file in files:
            try:
                yield from read(file, schema)
            except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
                raise DatasetError(f"cannot read {file.path}: {_first_line(error)}") from None

    rows = Rows(schema, _fingerprint(files), all_rows)
    if next((batch for batch in rows.batches() if batch.num_rows), None) is None:
        raise DatasetError(f"the dataset {dataset.path} has no rows")
    if absent := [key for key in dataset.key if key not in schema.names]:
        raise DatasetError(f"dataset.key names {', '.join(absent)}; the columns are: {', '.join(schema.names)}")
    return rows


def save_frame(frame: Any, path: Path) -> None:
    """Keeps a DataFrame as a Parquet file, unless it is there already.

    Raises:
        DatasetError: it is no DataFrame, is empty, or has columns that Parquet cannot hold.
    """
    if not hasattr(frame, "to_parquet"):
        raise DatasetError(f"dataset= takes a pandas DataFrame, not {type(frame).__name__}; a path goes into the job")
    try:
        table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata()
    except (pa.ArrowException, ValueError, TypeError) as error:
        raise DatasetError(f"the DataFrame cannot be kept as Parquet: {_first_line(error)}") from None
    if not table.num_rows:
        raise DatasetError("the DataFrame has no rows")
    if path.exists() and pq.ParquetFile(path).schema_arrow.equals(table.schema) and pq.read_table(path).equals(table):
        return  # rewriting it would look like another dataset
    with atomic_path(path) as part:
        pq.write_table(table, part, row_group_size=BATCH_ROWS * 8)


def _find_files(dataset: Dataset) -> list[File]:
    if not dataset.path:
        raise DatasetError("the job has no dataset: set dataset.path, or hand a DataFrame over as `dataset=`")
    try:
        filesystem, root = fsspec.core.url_to_fs(dataset.path)
        if filesystem.isdir(root):
            paths = [path for path in filesystem.find(root) if _suffix(path) in _SUFFIXES]
        elif any(sign in root for sign in "*?[") and not filesystem.exists(root):
            paths = [path for path in filesystem.glob(root) if not filesystem.isdir(path)]
        else:
            paths = [root] if filesystem.exists(root) else []
    except (ImportError, ValueError) as error:
        raise DatasetError(f"cannot open {dataset.path}: {error}") from None
    except OSError as error:
        raise DatasetError(f"cannot read {dataset.path}: {error.strerror or error}") from None
    if not paths:
        hint = "" if filesystem.isdir(root) else "; relative paths start at the working directory"
        raise DatasetError(f"there is no dataset at {dataset.path}{hint}")
    return [File(filesystem, path) for path in sorted(paths)]


def _suffix(path: str) -> str:
    parts = path.lower().rsplit("/", 1)[-1].split(".")
    return parts[-2] if parts[-1] in ("gz", "bz2", "zst") and len(parts) > 2 else parts[-1]


def _format(dataset: Dataset, files: list[File]) -> Format:
    if dataset.format != "auto":
        return dataset.format
    found = {_SUFFIXES.get(_suffix(file.path)) for file in files}
    if len(found) == 1 and (only := found.pop()):
        return only
    names = ", ".join(sorted({f".{_suffix(file.path)}" for file in files}))
    raise DatasetError(f"{dataset.path}: files of one format are needed, csv, parquet or jsonl, not {names}; "
                       "name it with dataset.format, or narrow dataset.path")  # fmt: skip


def _guarded(file: File, read: Callable[[File], pa.Schema]) -> pa.Schema:
    try:
        return read(file)
    except (pa.ArrowException, UnicodeDecodeError, OSError) as error:
        raise DatasetError(f"cannot read {file.path}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]


def _common_schema(files: list[File], schemas: list[pa.Schema], *, text_wins: bool) -> pa.Schema:
    first = set(schemas[0].names)
    problems = [
        Problem(file.path, f"its columns differ from {files[0].path}: " + ", ".join(sorted(first ^ set(schema.names))))
        for file, schema in zip(files, schemas, strict=True)
        if set(schema.names) != first
    ]
    for schema in schemas[:1]:
        problems += [Problem(files[0].path, f"has two columns named {name!r}") for name in _twice(schema.names)]
    if problems:
        raise DatasetError("the files of the dataset do not have the same columns:", problems)
    if text_wins:  # a column that is text in one csv file is text in all, as it stands there
        text = {field.name for schema in schemas for field in schema if pa.types.is_string(field.type)}
        schemas = [pa.schema([f.with_type(pa.string()) if f.name in text else f for f in schema]) for schema in schemas]
    try:
        common = pa.unify_schemas(schemas, promote_options="permissive")
    except pa.ArrowException as error:
        raise DatasetError(f"the files of the dataset have columns of different types: {_first_line(error)}") from None
    return pa.schema([pa.field(f.name, pa.string() if pa.types.is_null(f.type) else f.type) for f in common])


def _twice(names: list[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1})


def _fingerprint(files: list[File]) -> str:
    seen = hashlib.blake2b(digest_size=16)
    for file in files:
        about = file.filesystem.info(file.path)
        stamp = next((about[key] for key in ("ETag", "etag", "mtime", "LastModified") if key in about), None)
        seen.update(repr((file.path, about.get("size"), str(stamp))).encode())
    return seen.hexdigest()


def _csv_reader(file: File, types: dict[str, pa.DataType]) -> pa.csv.CSVStreamingReader:
    # Only an empty, unquoted field is null: "None" and "NA" are text that somebody wrote.
    convert = pa.csv.ConvertOptions(
        column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    parse = pa.csv.ParseOptions(newlines_in_values=True)
    stream = fsspec.core.OpenFile(file.filesystem, file.path, compression="infer").open()
    return pa.csv.open_csv(
        stream, parse_options=parse, convert_options=convert, read_options=pa.csv.ReadOptions(use_threads=False)
    )


def _csv_schema(file: File) -> pa.Schema:
    """Integers and decimals where every value of a column reads back as it stands in the file; text else."""
    try:
        with _csv_reader(file, {}) as reader:
            names = reader.schema.names
        if _twice(names):  # said of all files together
            return pa.schema([pa.field(name, pa.string()) for name in names])
        kinds: dict[str, list[pa.DataType]] = {name: [pa.int64(), pa.float64()] for name in names}
        with _csv_reader(file, dict.fromkeys(names, pa.string())) as reader:
            for batch in reader:
                for name, kept in kinds.items():
                    kinds[name] = [kind for kind in kept if _reads_back(batch[name], kind)]
    except pa.ArrowInvalid as error:
        if "Empty CSV file" in str(error):
            raise DatasetError(f"the dataset {file.path} has no rows") from None
        if "UTF8" in str(error):
            raise DatasetError(f"{file.path} is not UTF-8 text: save it as UTF-8 ({_first_line(error)})") from None
        raise
    return pa.schema([pa.field(name, next(iter(kinds[name]), pa.string())) for name in names])


def _reads_back(text: pa.Array, kind: pa.DataType) -> bool:
    try:
        return bool(pc.all(pc.equal(text.cast(kind).cast(pa.string()), text), min_count=0).as_py() is not False)
    except pa.ArrowException:
        return False


def _csv_rows(file: File, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with _csv_reader(file, {field.name: field.type for field in schema}) as reader:
        for batch in reader:
            yield batch.select(schema.names).cast(schema)


class _Block(NamedTuple):
    """Whole lines of a text file."""

    first_line: int
    """Line number, from 1, of its first line."""
    text: bytes


def _line_blocks(file: File) -> Iterator[_Block]:
    line, rest = 1, b""
    with fsspec.core.OpenFile(file.filesystem, file.path, compression="infer") as stream:
        while chunk := stream.read(_BLOCK_BYTES):
            whole, newline, rest = (rest + chunk).rpartition(b"\n")
            if newline:
                yield _Block(line, whole + newline)
                line += whole.count(b"\n") + 1
        if rest.strip():
            yield _Block(line, rest + b"\n")


def _json_block(file: File, block: _Block, schema: pa.Schema | None) -> pa.Table:
    unexpected = "infer" if schema is None else "ignore"
    parse = pa.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior=unexpected)
    read = pa.json.ReadOptions(use_threads=False, block_size=len(block.text) + 1)
    if block.text.isspace():
        return (schema or pa.schema([])).empty_table()
    try:
        return pa.json.read_json(io.BytesIO(block.text), parse_options=parse, read_options=read)
    except pa.ArrowInvalid as error:
        row = _JSON_ROW.search(str(error))
        where = f"{file.path}:{block.first_line + int(row[1])}" if row else f"{file.path}, from line {block.first_line}"
        raise DatasetError(f"{where}: not a JSON object that fits the other rows: {_first_line(error)}") from None


def _json_schema(file: File) -> pa.Schema:
    schema = pa.schema([])
    for block in _line_blocks(file):
        found = pa.schema([_text_stays(field) for field in _json_block(file, block, None).schema])
        try:
            schema = pa.unify_schemas([schema, found], promote_options="permissive")
        except pa.ArrowException as error:
            raise DatasetError(
                f"{file.path}, from line {block.first_line}: a column changes its type: {_first_line(error)}"
            ) from None
    return schema


def _text_stays(field: pa.Field) -> pa.Field:
    """Arrow guesses times in text that looks like them; a prompt wants the text."""
    return field.with_type(_with_text(field.type))


def _with_text(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_with_text(kind.value_type))
    return pa.struct([_text_stays(inner) for inner in kind]) if pa.types.is_struct(kind) else kind


def _json_rows(file: File, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for block in _line_blocks(file):
        yield from _json_block(file, block, schema).select(schema.names).to_batches()


def _parquet_schema(file: File) -> pa.Schema:
    with file.open() as stream:
        return pq.ParquetFile(stream).schema_arrow.remove_metadata()


def _parquet_rows(file: File, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    with file.open() as stream:
        parquet = pq.ParquetFile(stream, pre_buffer=False)
        for batch in parquet.iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            yield batch.select(schema.names).cast(schema)


def _line_schema(_file: File) -> pa.Schema:
    return REQUEST_LINES


def _line_rows(file: File, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for block in _line_blocks(file):
        numbered = list(enumerate(block.text.decode(errors="replace").split("\n")[:-1], block.first_line))
        kept = [(number, line) for number, line in numbered if line.strip()]
        if kept:
            yield pa.RecordBatch.from_arrays([pa.array(column) for column in zip(*kept, strict=True)], schema=schema)


_FORMATS: dict[Format, tuple[Callable[[File], pa.Schema], Callable[[File, pa.Schema], Iterator[pa.RecordBatch]]]] = {
    "csv": (_csv_schema, _csv_rows),
    "jsonl": (_json_schema, _json_rows),
    "parquet": (_parquet_schema, _parquet_rows),
    "requests": (_line_schema, _line_rows),
}
