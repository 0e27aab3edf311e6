"""What the columns of text files hold: a type where every value reads back as it stands in the file, else the text.

A column that is read as text may still have a form: `number`, whose text is no number's own way to print itself (`5`
beside `4.5`, `0.10`), or `json`, whose values are nested or of several kinds. Prompts print the text; the joined table
has the numbers, and the nested values where one Arrow type fits them all.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json

from overnight.job.cells import Form, form_of

_EXACT = 2**53
"""Integers up to here are doubles too."""
_LONG = re.compile(rb"[:,\[]\s*-?(?:\d{19}|\d+\.\d{16})")
"""Numbers in nested values that an int64 or a double may not hold."""
_decode = msgspec.json.decode
_encode = msgspec.json.Encoder().encode


class Settled(NamedTuple):
    """How a column is read, and how it is kept."""

    read: pa.Field
    kept: pa.DataType
    """Its type in the joined table."""


class Column:
    """What was seen of one column, over all files."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.kinds: set[str] = set()
        self._nested: pa.DataType = pa.null()

    def see_text(self, texts: Sequence[str]) -> None:
        """Looks at values of a csv file, without nulls: numbers where all print as they stand."""
        if "text" in self.kinds or not texts:
            return
        joined = f"[{','.join(texts)}]".encode()
        try:
            values = _decode(joined)
        except msgspec.DecodeError:
            values = []
        as_it_stands = len(values) == len(texts) and set(map(type, values)) <= {int, float} and _same(values, joined)
        self.kinds |= _number_kinds(values) if as_it_stands else {"text"}

    def see_json(self, values: Sequence[bytes | msgspec.Raw]) -> None:
        """Looks at JSON values as they stand in their lines.

        Raises:
            msgspec.DecodeError: one of them cannot be read.
        """
        joined = b"[" + b",".join(values) + b"]"
        try:
            read = _decode(joined)
        except msgspec.ValidationError:  # a number beyond the doubles
            read = msgspec.json.Decoder(float_hook=Decimal).decode(joined)
        types = set(map(type, read)) - {type(None)}
        if types & {dict, list}:
            self.kinds |= {"nested"} | ({"text"} if types - {dict, list} else set())
            self._see_nested([one for one in map(bytes, values) if one != b"null"])
        elif types == {str}:
            self.kinds.add("text")
        elif types == {bool}:
            self.kinds.add("bool")
        elif types and types <= {int, float, Decimal}:
            numbers = [one for one in read if one is not None]
            exact = types <= {int, float} and _same(read, joined)
            self.kinds |= _number_kinds(numbers) if exact else _odd_kinds(values)
        elif types:
            self.kinds |= {"text", "mixed"}

    def _see_nested(self, values: list[bytes]) -> None:
        lines = b"".join(b'{"v":%b}\n' % value.replace(b"\n", b" ") for value in values)
        if "loose" in self.kinds or _LONG.search(lines):
            self.kinds.add("loose")
            return
        try:
            read = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
            found = _with_text(pa.json.read_json(io.BytesIO(lines), read_options=read).schema.field("v").type)
            both = [pa.schema([pa.field("v", one)]) for one in (self._nested, found)]
            self._nested = pa.unify_schemas(both, promote_options="permissive").field("v").type
        except pa.ArrowException:
            self.kinds.add("loose")

    def settle(self) -> Settled:
        """How the column is to be read."""
        kinds = self.kinds
        if "nested" in kinds:
            typed = kinds == {"nested"} and _holds(self._nested)
            return self._as_text(self._nested if typed else pa.string(), "json")
        numbers = kinds & {"int", "long", "huge", "float", "odd"}
        if not kinds or "text" in kinds or (numbers and "bool" in kinds):
            return self._as_text(pa.string())
        if kinds == {"bool"}:
            return Settled(pa.field(self.name, pa.bool_(), metadata={"form": "bool"}), pa.bool_())
        if kinds <= {"int", "long"}:
            return self._as(pa.int64())
        if kinds == {"float"}:
            return self._as(pa.float64())
        if kinds <= {"int", "float", "odd"}:
            return self._as_text(pa.float64(), "number")
        return self._as_text(pa.string())

    def _as(self, kind: pa.DataType) -> Settled:
        return Settled(pa.field(self.name, kind), kind)

    def _as_text(self, kept: pa.DataType, form: Form | None = None) -> Settled:
        return Settled(pa.field(self.name, pa.string(), metadata={"form": form} if form else None), kept)


def _same(values: list[Any], joined: bytes) -> bool:
    """Whether numbers print themselves as they stand; what has an exponent may be printed in two ways."""
    return bool(_encode(values) == joined) and b"e" not in joined and b"E" not in joined


def _number_kinds(values: Sequence[Any]) -> set[str]:
    kinds = set()
    whole = [one for one in values if type(one) is int]
    if len(whole) < len(values):
        kinds.add("float")
    if whole:
        largest = max(*whole, -min(whole) - 1)
        kinds.add("int" if largest <= _EXACT else "long" if largest < 2**63 else "huge")
    return kinds


def _odd_kinds(values: Sequence[bytes | msgspec.Raw]) -> set[str]:
    """Numbers that stand otherwise than they print: of the same value as a double, or of more digits than it has."""
    texts = [text for one in values if (text := bytes(one).decode()) != "null"]
    return {"odd" if Decimal(text) == Decimal(repr(float(text))) else "huge" for text in texts}


def _with_text(kind: pa.DataType) -> pa.DataType:
    """Arrow guesses times in text that looks like them; a prompt wants the text."""
    if pa.types.is_temporal(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_with_text(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_with_text(field.type)) for field in kind])
    return kind


def _holds(kind: pa.DataType) -> bool:
    """Whether Parquet has the type: it knows no object without fields, and no list of nothing."""
    if pa.types.is_list(kind):
        return _holds(kind.value_type)
    if pa.types.is_struct(kind):
        return kind.num_fields > 0 and all(_holds(field.type) for field in kind)
    return not pa.types.is_null(kind)


def json_column(values: Sequence[bytes | msgspec.Raw], field: pa.Field) -> pa.Array:
    """JSON values, as they stand in their lines, as a column that was settled."""
    if not pa.types.is_string(field.type) or form_of(field) is None:
        joined = b"[" + b",".join(values) + b"]"
        try:
            return pa.array(_decode(joined), field.type)
        except (pa.ArrowException, msgspec.ValidationError):
            pass  # text and numbers in one column: each as it stands
        return pa.array([_plain(text) for text in map(bytes, values)], field.type)
    return pa.array([None if text == b"null" else text.decode() for text in map(bytes, values)], field.type)


def _plain(value: bytes) -> str | None:
    if value == b"null":
        return None
    return _decode(value, type=str) if value.startswith(b'"') else value.decode()


def kept_column(column: pa.Array, field: pa.Field, kept: pa.DataType) -> pa.Array:
    """A column that was read, as the joined table has it."""
    if column.type == kept:
        return column
    if form_of(field) != "json":
        return column.cast(kept)
    lines = b"".join(
        b'{"v":%b}\n' % (b"null" if text is None else text.replace("\n", " ").encode()) for text in column.to_pylist()
    )
    if not lines:
        return pa.array([], kept)
    parse = pa.json.ParseOptions(explicit_schema=pa.schema([pa.field("v", kept)]), unexpected_field_behavior="ignore")
    read = pa.json.ReadOptions(use_threads=False, block_size=len(lines) + 1)
    return pa.json.read_json(io.BytesIO(lines), parse_options=parse, read_options=read)["v"].combine_chunks()


def whole_numbers(texts: pa.Array) -> bool:
    """Whether all texts are integers that print as they stand: what partition folders are called."""
    column = Column("")
    column.see_text(pc.drop_null(texts).to_pylist())
    return column.kinds <= {"int", "long"} and len(texts) > texts.null_count
