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
from overnight.suggest import did_you_mean

_PLAIN = re.compile(r"\{\{\s*([A-Za-z_]\w*)\s*\}\}")
_GUARDED = re.compile(r"\{%-?\s*(?:if|elif)\s[^%]*?\b([A-Za-z_]\w*)\b|\{\{-?\s*([A-Za-z_]\w*)\s*\|\s*d(?:efault)?\b")
_encode = msgspec.json.Encoder().encode


def escape(text: str) -> bytes:
    """The content of a JSON string, without its quotes."""
    return _encode(text)[1:-1]


@dataclass(frozen=True)
class Rendered:
    """One template over one batch of rows."""

    texts: list[bytes]
    """JSON-escaped, one per row; empty where the row has an error."""
    errors: dict[int, str] = field(default_factory=dict)
    """Position in the batch: why the row cannot be rendered."""


@dataclass(frozen=True)
class Template:
    """A compiled template.

    Attributes:
        columns: the columns that it names.
        required: those that must not be null: printed as they are, with no `default` and no `if` about them.
        plain: every part is constant text or a text or integer column.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    required: tuple[str, ...]
    plain: bool

    @property
    def parts(self) -> list[str]:
        """Of a plain template: constant text and column names in turn, starting and ending with text."""
        return _PLAIN.split(self.source)

    def renderer(self) -> Callable[[pa.RecordBatch], Rendered]:
        """A function that renders a batch; it keeps the compiled template, which cannot be pickled."""
        environment = minijinja.Environment(undefined_behavior="strict", auto_escape_callback=lambda _name: False)
        environment.add_template(self.name, self.source)

        def render(batch: pa.RecordBatch) -> Rendered:
            texts, errors = [], {}
            for position, row in enumerate(batch.select(self.columns).to_pylist()):
                try:
                    texts.append(escape(environment.render_template(self.name, **row)))
                except minijinja.TemplateError as error:
                    texts.append(b"")
                    errors[position] = f"{self.name}: {error.message}"
            return Rendered(texts, errors)

        return render


def compile_template(name: str, source: str, schema: pa.Schema) -> Template:
    """Compiles and checks a template.

    Args:
        name: the field of the job that it stands in, for messages.
        source: the Jinja text.
        schema: the columns there are.

    Raises:
        TemplateError: a syntax error, or columns that the dataset does not have.
    """
    environment = minijinja.Environment()
    try:
        environment.add_template(name, source)
        named = environment.undeclared_variables_in_str(source) - set(environment.globals)
    except minijinja.TemplateError as error:
        raise TemplateError(f"{name}, line {error.line}: {error.message}") from None
    for unknown in sorted(named - set(schema.names)):
        columns = ", ".join(schema.names)
        raise TemplateError(
            f"{name}: the dataset has no column {unknown!r}{did_you_mean(unknown, schema.names)} "
            f"(the columns are: {columns})"
        )
    parts = _PLAIN.split(source)
    constant, printed = parts[0::2], parts[1::2]
    guarded = {one or other for one, other in _GUARDED.findall(source)}
    plain = not any(mark in text for text in constant for mark in ("{{", "{%", "{#"))
    return Template(
        name=name,
        source=source,
        columns=tuple(sorted(named)),
        required=tuple(sorted((set(printed) & named) - guarded)),
        plain=plain and all(_plain_type(schema.field(column).type) for column in printed),
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
