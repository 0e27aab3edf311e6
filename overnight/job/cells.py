"""A column's values as templates see them, and the texts that they print where a value prints otherwise."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

Form = Literal["number", "bool", "json"]


def form_of(field: pa.Field) -> Form | None:
    """What a column of a text file holds beside its type; None: it is what it is.

    `number`: text of numbers that print in another way than it stands there. `bool`: JSON's `true` and `false`. `json`:
    text of nested values, or of several kinds.
    """
    found = (field.metadata or {}).get(b"form")
    return found.decode() if found else None


class Cells(NamedTuple):
    """The values of a column, None where it is null."""

    values: Sequence[Any]
    texts: Sequence[str | None] | None = None
    """What a template prints, where it is not what the value does."""


def prints_as_text(field: pa.Field) -> bool:
    """Whether a column has texts of its own."""
    kind = field.type
    return (
        form_of(field) is not None
        or pa.types.is_decimal(kind)
        or pa.types.is_float32(kind)
        or pa.types.is_float16(kind)
        or isinstance(kind, pa.BaseExtensionType)
    )


def cells_of(column: pa.Array, field: pa.Field) -> Cells:
    """Reads a column."""
    match form_of(field):
        case "number":
            texts = column.to_pylist()
            return Cells([None if text is None else _number(text) for text in texts], texts)
        case "bool":
            values = column.to_pylist()
            return Cells(values, [None if value is None else str(value).lower() for value in values])
        case "json":
            texts = column.to_pylist()
            values = [None if text is None else json.loads(text) for text in texts]
            return Cells(values, [_said(value, text) for value, text in zip(values, texts, strict=True)])
    kind = field.type
    if pa.types.is_decimal(kind):
        decimals: list[Decimal | None] = column.to_pylist()
        return Cells(decimals, [None if one is None else format(one, "f") for one in decimals])
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        narrow = np.float32 if pa.types.is_float32(kind) else np.float16
        floats = column.to_pylist()
        return Cells(floats, [None if one is None else str(narrow(one)) for one in floats])
    if isinstance(kind, pa.BaseExtensionType):
        return Cells(column.storage.to_pylist(), _extension_texts(column))
    return Cells(values_of(column))


def _extension_texts(column: pa.ExtensionArray) -> list[str | None]:
    """The values as who made the type words them: pandas' own (intervals, periods) are known to pandas alone."""
    own = type(column.type).__module__.startswith("pandas")
    values = column.type.to_pandas_dtype().__from_arrow__(column).tolist() if own else column.to_pylist()
    return [str(one) if there else None for one, there in zip(values, column.is_valid().to_pylist(), strict=True)]


def _number(text: str) -> int | float:
    return float(text) if any(sign in text for sign in ".eE") else int(text)


def _said(value: Any, text: str | None) -> str | None:
    return value if isinstance(value, str) else text


def values_of(column: pa.Array) -> list[Any]:
    """Python's values; Arrow's own text where Python has none, such as times past the year 9999."""
    try:
        values: list[Any] = column.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        values = column.cast(pa.string()).to_pylist()
    return values
