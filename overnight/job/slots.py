"""What fills a request body beside texts: a message's parts, and whole conversations."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa

from overnight.job.cells import cells_of
from overnight.job.media import BadMedia, Kind, media_values, part_of
from overnight.job.template import Rendered, Template, unescaped

Errors = dict[int, tuple[str, str]]
"""Position in a batch of rows: error code and message."""
_COLUMN = re.compile(r"""\s*\{\{-?\s*(?:row\s*\[\s*(["'])(?P<key>.+?)\1\s*\]|(?P<name>[A-Za-z_]\w*))\s*-?\}\}\s*""")
_encode = msgspec.json.encode
_ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})


def whole_column(source: str) -> str | None:
    """The column that a template is all of, such as `{{ image }}`: its values are taken as they are."""
    found = _COLUMN.fullmatch(source)
    return (unescaped(found["key"]) if found["key"] else found["name"]) if found else None


@dataclass(frozen=True)
class Shown:
    """Something that is shown beside the text."""

    kind: Kind
    template: Template

    @cached_property
    def _render(self) -> Callable[[pa.RecordBatch], Rendered]:
        return self.template.renderer()

    def values(self, batch: pa.RecordBatch, errors: Errors) -> list[Any]:
        """What each row shows: a column's own values, or rendered texts."""
        if (name := whole_column(self.template.source)) is not None:
            return list(cells_of(batch[name], batch.schema.field(name)).values)
        rendered = self._render(batch)
        errors.update(rendered.errors)
        return [msgspec.json.decode(b'"%b"' % text) for text in rendered.texts]


@dataclass(frozen=True)
class Parts:
    """A message's content: a text, and what is shown beside it."""

    text: Template
    shown: tuple[Shown, ...]
    responses: bool
    """In the form of the Responses API; else of chat completions."""
    fetched: bool
    """Whether the provider fetches addresses."""
    folders: tuple[Path, ...]
    """Where local files may lie."""
    _cache: dict[str, Any] = field(default_factory=dict, compare=False)

    def fill(self, batch: pa.RecordBatch, errors: Errors) -> list[bytes]:
        """The content of each row, as JSON."""
        if "text" not in self._cache:
            self._cache["text"] = self.text.renderer()
        rendered: Rendered = self._cache["text"](batch)
        errors.update(rendered.errors)
        columns = [(one.kind, one.values(batch, errors)) for one in self.shown]
        kind = b"input_text" if self.responses else b"text"
        filled = []
        for at, text in enumerate(rendered.texts):
            parts = [b'{"type":"%b","text":"%b"}' % (kind, text)]
            try:
                for name, values in columns:
                    parts += [_encode(self._part(name, one)) for one in media_values(values[at])]
            except BadMedia as bad:
                errors.setdefault(at, (bad.code, str(bad)))
            filled.append(b"[" + b",".join(parts) + b"]")
        return filled

    def _part(self, kind: Kind, value: Any) -> dict[str, Any]:
        return part_of(kind, value, responses=self.responses, fetched=self.fetched, folders=self.folders)


@dataclass(frozen=True)
class Conversation:
    """A column that holds whole conversations, as lists of messages or as JSON text of them."""

    column: str
    system: Template | None
    _cache: dict[str, Any] = field(default_factory=dict, compare=False)

    def fill(self, batch: pa.RecordBatch, errors: Errors) -> list[bytes]:
        """The messages of each row, as JSON."""
        systems: list[bytes] = [b""] * len(batch)
        if self.system is not None:
            if "system" not in self._cache:
                self._cache["system"] = self.system.renderer()
            rendered: Rendered = self._cache["system"](batch)
            errors.update(rendered.errors)
            systems = [b'{"role":"system","content":"%b"},' % text for text in rendered.texts]
        filled = []
        for at, value in enumerate(cells_of(batch[self.column], batch.schema.field(self.column)).values):
            messages, wrong = _messages(value)
            if value is None:
                errors[at] = ("null_input", f"column {self.column!r} is null")
            elif wrong:
                errors[at] = ("bad_messages", f"column {self.column!r}: {wrong}")
            filled.append(b"[" + systems[at] + b",".join(map(_encode, messages)) + b"]")
        return filled


def _messages(value: Any) -> tuple[list[Any], str]:
    """A conversation, and what is wrong with it."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError as error:
            return [], f"not a list of messages as JSON ({error})"
    if not isinstance(value, list) or not value:
        return [], "not a list of messages"
    for number, message in enumerate(value, 1):
        if not isinstance(message, Mapping) or message.get("role") not in _ROLES:
            return [], f"message {number} has no role of {', '.join(sorted(_ROLES))}"
        if message.get("content") is None and not message.get("tool_calls"):
            return [], f"message {number} has no content"
    return [_without_nulls(message) for message in value], ""


def _without_nulls(value: Any) -> Any:
    """A struct column has every field in every row: what a message does not have is null there."""
    if isinstance(value, Mapping):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value
