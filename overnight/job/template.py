r"""Prompt templates: Jinja over a row's columns, compiled once, rendered a batch of rows at a time.

A template of plain `{{ column }}` over text or integer columns never meets the template engine: it is a byte pattern
and the columns that fill it, seven times as fast as building the same request with `json.dumps`. Anything more is
rendered by minijinja. Both give the content of a JSON string, escaped, so that it is spliced into a request body.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import minijinja
import msgspec
import numpy as np
import pyarrow as pa

from overnight.errors import TemplateError
from overnight.job.cells import cells_of, form_of, prints_as_text
from overnight.text import did_you_mean

_PLAIN = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_TAG = re.compile(r"\{[{%].*?[%}]\}", re.DOTALL)
_ROW = re.compile(r"""\brow\b(?:\s*\[\s*(["'])(?P<key>[^"']*)\1\s*\]|\s*\.\s*(?P<name>[A-Za-z_]\w*)(?!\s*\(|\w))?""")
_BINDING = re.compile(r"\{%-?\s*(?:for|set|macro|with|call)\b.*?%\}", re.DOTALL)
_PRINTED = "__printed"
_encode = msgspec.json.Encoder().encode
_BETWEEN = b"\xff"
"""No byte of any UTF-8 text."""
_ESCAPES = ((b"\\", b"\\\\"), (b'"', b'\\"'), (b"\n", b"\\n"), (b"\r", b"\\r"), (b"\t", b"\\t"))
"""What JSON escapes in a text, but for the control characters that hardly any text has."""
_FIRST_PRINTED = 0x20


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
        columns: the columns that it names, or all where it uses `row` as a whole.
        plain: every part is constant text or a text or integer column.
        printing: the source, in which columns that print otherwise than their values do are taken as text.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    plain: bool
    printing: str = ""

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
        environment.add_template(self.name, self.printing)

        def render(batch: pa.RecordBatch) -> Rendered:
            texts, errors = list[bytes](), dict[int, tuple[str, str]]()
            columns = [cells_of(batch[name], batch.schema.field(name)) for name in self.columns]
            for position in range(batch.num_rows):
                values = zip(self.columns, columns, strict=True)
                known = {name: value for name, cells in values if (value := cells.values[position]) is not None}
                shown = {
                    name: text
                    for name, cells in zip(self.columns, columns, strict=True)
                    if cells.texts is not None and (text := cells.texts[position]) is not None
                }
                try:
                    context = {"row": known} | known | {_PRINTED: shown}
                    texts.append(escape(environment.render_template(self.name, **context)))
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
    message = re.sub(rf"`(?:row|{_PRINTED})\[(['\"].*?['\"])\]` is undefined", r"column \1 is null", message)
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
    if "self" in schema.names and re.search(r"\bself\b", " ".join(_TAG.findall(source))):
        named = {*named, "self"}  # Jinja's own name for a template's blocks
    through_row, whole = _through_row(source) if "row" in named and "row" not in schema.names else (set(), False)
    for unknown in sorted((named | through_row) - {*schema.names, *environment.globals, "row"}):
        columns = ", ".join(schema.names)
        raise TemplateError(
            f"{name}: the dataset has no column {unknown!r}{did_you_mean(unknown, schema.names)} "
            f"(the columns are: {columns})"
        )
    _check_names(environment, name, source)
    parts = _PLAIN.split(source)
    constant, printed = parts[0::2], parts[1::2]
    plain = not any(mark in text for text in constant for mark in ("{{", "{%", "{#")) and set(printed) <= named
    used = schema.names if whole else sorted((named | through_row) & set(schema.names))
    return Template(
        name=name,
        source=source,
        columns=tuple(used),
        plain=plain and not through_row and not whole and all(_is_plain(schema.field(column)) for column in printed),
        printing=_printing(source, [column for column in used if prints_as_text(schema.field(column))]),
    )


def _through_row(source: str) -> tuple[set[str], bool]:
    """The columns that are reached through `row` by name, and whether it is used as a whole."""
    found = [match for tag in _TAG.findall(source) for match in _ROW.finditer(tag)]
    names = [unescaped(match["key"]) if match["key"] is not None else match["name"] for match in found]
    return {name for name in names if name is not None}, None in names


def unescaped(literal: str) -> str:
    """What stands between the quotes of a literal, as the template reads it."""
    try:
        return str(json.loads(f'"{literal}"'))
    except ValueError:
        return literal


def _printing(source: str, columns: Sequence[str]) -> str:
    """Puts a column's text where a template prints the column itself: `{{ price }}`, but not `{{ price * 2 }}`."""
    bound = set(re.findall(r"\w+", " ".join(_BINDING.findall(source))))
    if "{% raw" in source or "{%- raw" in source:
        return source
    for column in columns:
        literal = re.escape(json.dumps(column, ensure_ascii=False)[1:-1])
        ways = [rf"row\s*\[\s*[\"']{literal}[\"']\s*\]", rf"row\s*\.\s*{re.escape(column)}"]
        ways += [re.escape(column)] if column not in bound else []
        shown = partial(_shown, json.dumps(column, ensure_ascii=False))
        source = re.sub(rf"(\{{\{{-?\s*)(?:{'|'.join(ways)})(\s*-?\}}\}})", shown, source)
    return source


def _shown(column: str, match: re.Match[str]) -> str:
    return f"{match[1]}{_PRINTED}[{column}]{match[2]}"


def _is_plain(column: pa.Field) -> bool:
    kind = column.type
    text = (pa.types.is_string(kind) or pa.types.is_large_string(kind)) and form_of(column) != "json"
    return bool(text or pa.types.is_integer(kind))


def escaped_column(column: pa.Array) -> list[bytes]:
    """A text or integer column as JSON string contents; empty bytes for nulls."""
    if pa.types.is_integer(column.type):
        return [b"" if value is None else b"%d" % value for value in column.to_pylist()]
    # The column as one text, of bytes: a fifth of the time that a Python string for each of its cells takes.
    text = _BETWEEN.join(column.fill_null("").cast(pa.large_binary()).to_pylist())
    for bare, escaped in _ESCAPES:
        text = text.replace(bare, escaped)
    if text and np.frombuffer(text, np.uint8).min() < _FIRST_PRINTED:
        return [escape(value or "") for value in column.to_pylist()]
    return text.split(_BETWEEN) if len(column) else []
