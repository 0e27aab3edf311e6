"""JSON Lines: one object per line, whose values are taken as they stand."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from typing import NamedTuple

import msgspec
import pyarrow as pa

from overnight.errors import DatasetError
from overnight.rows.columns import Column, json_column
from overnight.rows.files import File, text_stream

_BLOCK_BYTES = 1 << 20
_NULL = b"null"
_objects = msgspec.json.Decoder(dict[str, msgspec.Raw])
_exact = msgspec.json.Decoder(float_hook=Decimal)


class Block(NamedTuple):
    """Whole lines of a text file."""

    first_line: int
    """Line number, from 1, of its first line."""
    text: bytes


def line_blocks(file: File, encoding: str | None = None) -> Iterator[Block]:
    """A text file in pieces of about a megabyte, or as long as its longest line."""
    line, pieces = 1, list[bytes]()
    with text_stream(file, encoding) as stream:
        while chunk := stream.read(_BLOCK_BYTES):
            whole, newline, rest = chunk.rpartition(b"\n")
            if not newline:
                pieces.append(chunk)
                continue
            text = b"".join([*pieces, whole, newline])
            yield Block(line, text)
            line += text.count(b"\n")
            pieces = [rest]
        if (text := b"".join(pieces)).strip():
            yield Block(line, text + b"\n")


class JsonLines:
    """One JSON Lines file."""

    def __init__(self, file: File, encoding: str | None) -> None:
        self._file, self._encoding = file, encoding
        self.names: list[str] = []

    def look(self, columns: dict[str, Column]) -> None:
        """Reads the file once, for its columns and what they hold; adds those that are new."""
        for block in line_blocks(self._file, self._encoding):
            rows = self._rows(block)
            try:
                for name in dict.fromkeys(name for row in rows for name in row):
                    values = [row[name] for row in rows if name in row]
                    columns.setdefault(name, Column(name)).see_json(values)
            except msgspec.DecodeError as error:
                raise self._wrong(block, error) from None

    def rows(self, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        """The rows in their order, with all columns of the schema."""
        for block in line_blocks(self._file, self._encoding):
            rows = self._rows(block)
            try:
                columns = [json_column([row.get(field.name, _NULL) for row in rows], field) for field in schema]
            except msgspec.DecodeError as error:
                raise self._wrong(block, error) from None
            yield pa.RecordBatch.from_arrays(columns, schema=schema)

    def _rows(self, block: Block) -> list[dict[str, msgspec.Raw]]:
        try:
            return _objects.decode_lines(block.text)
        except msgspec.DecodeError as error:
            raise self._wrong(block, error) from None

    def _wrong(self, block: Block, error: Exception) -> DatasetError:
        """Names the first line that is no JSON object, and what is wrong with it."""
        for number, line in enumerate(block.text.split(b"\n"), block.first_line):
            if not line.strip():
                continue
            try:
                _objects.decode(line)
                _exact.decode(line)
            except msgspec.DecodeError as why:
                return DatasetError(f"{self._file.path}:{number}: not a JSON object: {_why(line, number, why)}")
        return DatasetError(f"cannot read {self._file.path}, from line {block.first_line}: {error}")


def _why(line: bytes, number: int, error: Exception) -> str:
    if number == 1 and line.lstrip().startswith(b"["):
        return "a file of one array; write one object per line, or read it with dataset.sql"
    if b"\\ud" in line.lower() and "truncated" in str(error):
        return "half of a surrogate pair (\\ud800–\\udfff) is no character"
    return str(error)
