"""What kind of answer a task asks for, and the strict schemas of the presets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from overnight.job.schema import Column, columns_of

_FIELD_TYPES: dict[str, dict[str, Any]] = {
    "string": {"type": ["string", "null"]}, "integer": {"type": ["integer", "null"]},
    "number": {"type": ["number", "null"]}, "boolean": {"type": ["boolean", "null"]},
    "strings": {"type": "array", "items": {"type": "string"}},
}  # fmt: skip


def label_schema(name: str, labels: Iterable[str]) -> dict[str, Any]:
    """The strict schema of one label out of a list."""
    return _closed({name: {"type": "string", "enum": list(labels)}})


def object_schema(fields: Mapping[str, str]) -> dict[str, Any]:
    """The strict schema of named, typed fields, null where a text does not state them."""
    return _closed({name: _FIELD_TYPES[kind] for name, kind in fields.items()})


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


class Extra(NamedTuple):
    """A column that answers have beside the answer itself."""

    field: pa.Field
    told: str
    """What of a reply it holds."""


@dataclass(frozen=True)
class Answer:
    """What kind of answer a task asks for."""

    kind: Literal["text", "json", "label", "embedding", "moderation", "raw", "calls"]
    schema: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()
    tools: Mapping[str, Any] = field(default_factory=dict)
    """The schemas of the functions that may be called, by name."""
    must_call: bool = False
    """Whether an answer without a call is none."""
    several: bool = False
    """Whether one request has several answers (`n`)."""
    logprobs: bool = False
    """Whether the probabilities of its tokens were asked for."""

    @staticmethod
    def text() -> Answer:
        """Free text."""
        return Answer("text")

    @staticmethod
    def structured(schema: Mapping[str, Any]) -> Answer:
        """A JSON object that fits a schema; its properties become columns."""
        return Answer("json", schema=schema, columns=columns_of(schema))

    @staticmethod
    def label(labels: tuple[str, ...], schema: Mapping[str, Any] | None) -> Answer:
        """One of the labels: in a JSON object where a schema is given, as plain text where not."""
        return Answer("label", schema=schema, labels=labels)

    @staticmethod
    def embedding() -> Answer:
        """A list of floats."""
        return Answer("embedding")

    @staticmethod
    def moderation() -> Answer:
        """`flagged` or `not flagged`, and the categories that are."""
        columns = (
            Column("flagged", pa.bool_(), nested=False),
            Column("categories", pa.list_(pa.string()), nested=False),
        )
        return Answer("moderation", columns=columns)

    @staticmethod
    def calls(tools: Mapping[str, Any], *, required: bool) -> Answer:
        """Calls of functions: the first in columns, all of them as the provider's JSON."""
        columns = (Column("tool", pa.string(), nested=False), Column("arguments", pa.string(), nested=False))
        return Answer("calls", columns=columns, tools=tools, must_call=required)

    @staticmethod
    def raw() -> Answer:
        """Whatever the body holds: nothing is known of what was asked for."""
        return Answer("raw")

    @property
    def extras(self) -> tuple[Extra, ...]:
        """What is told beside the answer; a column of the answer's own schema goes before one of the same name."""
        found = []
        if self.several:
            found.append(Extra(pa.field("answers", pa.list_(pa.string())), "answers"))
        if self.kind not in ("embedding", "moderation"):
            found.append(Extra(pa.field("answer_reasoning", pa.string()), "reasoning"))
        if self.logprobs:
            found.append(Extra(pa.field("answer_logprob", pa.float64()), "logprob"))
            if self.kind == "label":
                found.append(Extra(pa.field("answer_probability", pa.float64()), "probability"))
        own = {f"answer_{column.name}" for column in self.columns}
        return tuple(extra for extra in found if extra.field.name not in own)

    @property
    def type(self) -> pa.DataType:
        """The Arrow type of the `answer` column."""
        return pa.list_(pa.float32()) if self.kind == "embedding" else pa.string()
