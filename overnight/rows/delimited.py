"""csv files: comma, semicolon, tab or bar between the cells, quoted line breaks, cells of any size."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.csv

from overnight.errors import DatasetError
from overnight.job.job import Dataset
from overnight.rows.columns import Column
from overnight.rows.files import File, text_stream

_DELIMITERS = {"csv": ",;\t|", "tsv": "\t,;|", "tab": "\t,;|", "psv": "|,;\t"}
_SNIFFED_BYTES = 64 << 10
_SNIFFED_ROWS = 20
_BLOCK_BYTES = 1 << 20
_LARGEST_BLOCK = 1 << 30
"""A row has to fit into a block; Arrow counts its bytes in 31 bits."""


class Delimited:
    """One csv file: how it is written, and what its columns hold."""

    def __init__(self, file: File, dataset: Dataset) -> None:
        self._file, self._encoding = file, dataset.encoding
        self._block = _BLOCK_BYTES
        self._delimiter = dataset.delimiter or self._sniffed()
        self.names = self._header()

    def look(self, columns: dict[str, Column]) -> None:
        """Reads the file once, for what its columns hold."""
        for batch in self._batches(dict.fromkeys(self.names, pa.string())):
            for name in self.names:
                columns[name].see_text(batch[name].drop_null().to_pylist())

    def rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in their order, with the columns of the file."""
        types = {name: schema.field(name).type for name in self.names}
        yield from self._batches(types)

    def _sniffed(self) -> str:
        """The delimiter that cuts the header and the rows after it into the same number of cells."""
        possible = _DELIMITERS.get(self._file.kind, _DELIMITERS["csv"])
        with self._text() as stream:
            start = stream.read(_SNIFFED_BYTES).decode(errors="replace")
        cells = {one: _cell_counts(start, one) for one in possible}
        fitting = [one for one in possible if len(set(cells[one])) == 1 and cells[one][0] > 1]
        return max(fitting or possible[:1], key=lambda one: cells[one][0] if cells[one] else 0)

    def _header(self) -> list[str]:
        try:
            with self._reader({}) as reader:
                return list(reader.schema.names)
        except pa.ArrowInvalid as error:
            if "Empty CSV file" in str(error):
                return []
            raise self._unreadable(error) from None

    def _batches(self, types: dict[str, pa.DataType]) -> Iterator[pa.RecordBatch]:
        """All rows; where one does not fit into a block, from it on in larger ones."""
        given = 0
        while self.names:
            skip = given
            try:
                with self._reader(types) as reader:
                    for batch in reader:
                        fresh = batch.slice(skip)
                        skip = max(0, skip - batch.num_rows)
                        given += fresh.num_rows
                        yield fresh
                return
            except pa.ArrowInvalid as error:
                if "straddling" not in str(error) or self._block >= _LARGEST_BLOCK:
                    raise self._unreadable(error) from None
                self._block *= 8

    @contextmanager
    def _text(self) -> Iterator[io.BufferedIOBase]:
        with text_stream(self._file, self._encoding) as stream:
            yield stream

    @contextmanager
    def _reader(self, types: dict[str, pa.DataType]) -> Iterator[Any]:
        # Only an empty, unquoted field is null: "None" and "NA" are text that somebody wrote.
        convert = pa.csv.ConvertOptions(
            column_types=types, null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False
        )
        parse = pa.csv.ParseOptions(delimiter=self._delimiter, newlines_in_values=True)
        read = pa.csv.ReadOptions(use_threads=False, block_size=self._block)
        with (
            self._text() as stream,
            pa.csv.open_csv(stream, parse_options=parse, convert_options=convert, read_options=read) as reader,
        ):
            yield reader

    def _unreadable(self, error: Exception) -> DatasetError:
        said = str(error).strip().split("\n")[0]
        hint = ""
        if "Expected" in said:
            hint = (
                f" between cells {self._delimiter!r} was read: name another with dataset: {{delimiter: …}}, or mend it"
            )
        return DatasetError(f"cannot read {self._file.path}: {said}{';' if hint else ''}{hint}")


def _cell_counts(text: str, delimiter: str) -> list[int]:
    """Cells of the first rows that are whole."""
    limit = csv.field_size_limit(len(text) + 1)
    try:
        rows = [len(row) for row, _ in zip(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter),
                                           range(_SNIFFED_ROWS + 1), strict=False) if row]  # fmt: skip
    except csv.Error:
        return []
    finally:
        csv.field_size_limit(limit)
    whole = len(text) < _SNIFFED_BYTES and len(rows) <= _SNIFFED_ROWS
    return rows if whole or len(rows) < 2 else rows[:-1]
