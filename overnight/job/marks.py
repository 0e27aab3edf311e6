"""Marks in a body: where a row's texts, parts and conversations go, found again in the encoded JSON."""

from __future__ import annotations

from uuid import uuid4

import pyarrow as pa

from overnight.job.slots import Conversation, Parts
from overnight.job.template import Template, compile_template, escape

Slot = str | Template | Parts | Conversation
"""What fills a hole of a body: a column's text, a rendered template, or a JSON value."""


class Marks:
    """Stands a mark into the body for each slot, to be found again in the encoded JSON."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.slots: dict[str, Template | Parts | Conversation] = {}
        self.templates: list[Template] = []

    def compile(self, name: str, source: str) -> Template:
        """Compiles a template whose columns are printed: null in none of the rows that are sent."""
        self.templates.append(compile_template(name, source, self.schema))
        return self.templates[-1]

    def put(self, name: str, source: str) -> str:
        """A mark where a template's text goes."""
        return self.stand(self.compile(name, source))

    def stand(self, slot: Template | Parts | Conversation) -> str:
        """A mark where something goes."""
        mark = f"<{uuid4().hex}>"
        self.slots[mark] = slot
        return mark

    def split(self, encoded: bytes) -> tuple[bytes, list[Slot]]:
        """The body as a `%b` pattern, and what fills it. What is no text fills its place with the quotes."""
        pattern, slots = b"", list[Slot]()
        at = 0
        for start, mark in sorted((encoded.index(mark.encode()), mark) for mark in self.slots):
            slot = self.slots[mark]
            quote = 0 if isinstance(slot, Template) else 1
            pattern += encoded[at : start - quote].replace(b"%", b"%%")
            inner, filled = _inline(slot) if isinstance(slot, Template) else (b"%b", [slot])
            pattern += inner
            slots.extend(filled)
            at = start + len(mark) + quote
        return pattern + encoded[at:].replace(b"%", b"%%"), slots


def _inline(template: Template) -> tuple[bytes, list[Slot]]:
    if not template.plain:
        return b"%b", [template]
    constant, columns = template.parts[0::2], template.parts[1::2]
    return b"%b".join(escape(text).replace(b"%", b"%%") for text in constant), list(columns)
