r"""Prompt templates: Jinja over a row's columns, compiled once, rendered a batch of rows at a time.

A template of plain `{{ column }}` over text or integer columns never meets the template engine: it is a byte pattern
and the columns that fill it, seven times as fast as building the same request with `json.dumps`. Anything more is
rendered by minijinja. Both give the content of a JSON string, escaped, so that it is spliced into a request body.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import minijinja
import msgspec
import pyarrow as pa

from overnight.errors import TemplateError
from overnight.text import did_you_mean

_PLAIN = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_encode = msgspec.json.Encoder().encode


def escape(text: str) -> bytes:
    """The content of a JSON string, without its quotes."""
    return _encode(text)[1:-1]


@dataclass(frozen=True)
class Rendered:
    """One template over one batch of rows."""

    texts: list[bytes]
    """JSON-escaped, one per row; empty where the row has an error."""
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Position in the batch: error code, and why the row cannot be rendered."""


@dataclass(frozen=True)
class Template:
    """A compiled template.

    Attributes:
        columns: the columns that it names, or all where it uses `row`.
        plain: every part is constant text or a text or integer column.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    plain: bool

    @property
    def parts(self) -> list[str]:
        """Of a plain template: constant text and column names in turn, starting and ending with text."""
        return _PLAIN.split(self.source)

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that a plain template prints: null in none of the rows that are sent."""
        return self.columns if self.plain else ()

    def renderer(self) -> Callable[[pa.RecordBatch], Rendered]:
        """A function that renders a batch; it keeps the compiled template, which cannot be pickled.

        A null is undefined to the template: printing it is an error of the row, testing for it is not.
        """
        environment = _environment()
        environment.add_template(self.name, self.source)

        def render(batch: pa.RecordBatch) -> Rendered:
            texts, errors = list[bytes](), dict[int, tuple[str, str]]()
            for position, row in enumerate(batch.select(self.columns).to_pylist()):
                known = {name: value for name, value in row.items() if value is not None}
                try:
                    texts.append(escape(environment.render_template(self.name, **{"row": known} | known)))
                except Exception as error:  # noqa: BLE001 - filters and methods of values raise what they like
                    texts.append(b"")
                    errors[position] = _row_error(self.name, error)
            return Rendered(texts, errors)

        return render


def _environment() -> minijinja.Environment:
    lenient_in_tests: Any = "semi_strict"  # missing in the stubs of minijinja 3.0
    return minijinja.Environment(
        undefined_behavior=lenient_in_tests, auto_escape_callback=lambda _name: False, keep_trailing_newline=True
    )


def _row_error(name: str, error: Exception) -> tuple[str, str]:
    message = getattr(error, "message", None) or str(error)
    code = "null_input" if getattr(error, "kind", None) == "UndefinedError" else "template_error"
    return code, f"{name}: {message}"


def _check_names(environment: minijinja.Environment, name: str, source: str) -> None:
    """Refuses filters, tests and functions that do not exist: every row would fail at them."""
    environment.undefined_behavior = "lenient"
    try:
        environment.render_str(source, row={})
    except Exception as error:  # noqa: BLE001 - anything else depends on the row
        if (kind := getattr(error, "kind", None)) in ("UnknownFilter", "UnknownTest", "UnknownFunction"):
            message = getattr(error, "message", kind)
            raise TemplateError(f"{name}, line {getattr(error, 'line', 1)}: {message}") from None


def compile_template(name: str, source: str, schema: pa.Schema) -> Template:
    """Compiles and checks a template.

    Args:
        name: the field of the job that it stands in, for messages.
        source: the Jinja text.
        schema: the columns there are; those whose names are no identifiers are reached through `row`.

    Raises:
        TemplateError: a syntax error, or columns that the dataset does not have.
    """
    environment = _environment()
    try:
        environment.add_template(name, source)
        named = environment.undeclared_variables_in_str(source)
    except minijinja.TemplateError as error:
        odd = [column for column in schema.names if not column.isidentifier() and column in source]
        hint = f'; write {{{{ row["{odd[0]}"] }}}} for that column' if odd else ""
        raise TemplateError(f"{name}, line {error.line}: {error.message}{hint}") from None
    for unknown in sorted(named - set(schema.names) - set(environment.globals) - {"row"}):
        columns = ", ".join(schema.names)
        raise TemplateError(
            f"{name}: the dataset has no column {unknown!r}{did_you_mean(unknown, schema.names)} "
            f"(the columns are: {columns})"
        )
    _check_names(environment, name, source)
    parts = _PLAIN.split(source)
    constant, printed = parts[0::2], parts[1::2]
    plain = not any(mark in text for text in constant for mark in ("{{", "{%", "{#")) and set(printed) <= named
    whole = "row" in named and "row" not in schema.names
    return Template(
        name=name,
        source=source,
        columns=tuple(schema.names) if whole else tuple(sorted(named & set(schema.names))),
        plain=plain and not whole and all(_plain_type(schema.field(column).type) for column in printed),
    )


def _plain_type(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))


def escaped_column(column: pa.Array) -> list[bytes]:
    """A text or integer column as JSON string contents; empty bytes for nulls."""
    values: Sequence[Any] = column.to_pylist()
    if pa.types.is_integer(column.type):
        return [b"" if value is None else b"%d" % value for value in values]
    if column.null_count:
        return [b"" if value is None else _encode(value)[1:-1] for value in values]
    return [_encode(value)[1:-1] for value in values]
