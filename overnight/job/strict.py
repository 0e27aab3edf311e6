"""JSON Schemas for strict structured output: closed, every property required, what cannot be said refused.

The rules are those of OpenAI's guide to structured outputs (November 2026): no open objects, no optional properties,
the root an object, and none of `allOf`, `oneOf`, `not`, `if`, `dependentRequired`, `patternProperties`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from overnight.errors import JobError, Problem

_MAPS = frozenset({"properties", "$defs", "definitions"})
"""Keywords whose keys are names that somebody chose."""
_SAID = frozenset({"enum", "const", "examples"})
"""Keywords that hold values, not schemas."""
_REFUSED = ("allOf", "oneOf", "not", "if", "then", "else", "dependentRequired", "dependentSchemas", "patternProperties",
            "prefixItems", "propertyNames", "unevaluatedProperties")  # fmt: skip


class Strict(NamedTuple):
    """A schema that strict providers take."""

    schema: dict[str, Any]
    changes: list[str]
    """What was changed, in words."""


def make_strict(schema: Mapping[str, Any]) -> Strict:
    """Closes a schema and requires every property; optional ones may be null instead.

    Raises:
        JobError: it says what strict output cannot; lists all of it.
    """
    maker = _Maker()
    strict = maker.schema_at(schema, "")
    if maker.problems:
        raise JobError("task.schema cannot be held strictly by the provider: mend it, or set task.strict: false",
                       maker.problems)  # fmt: skip
    return Strict(strict, maker.changes)


class _Maker:
    def __init__(self) -> None:
        self.changes: list[str] = []
        self.problems: list[Problem] = []

    def schema_at(self, schema: Any, at: str) -> Any:
        if not isinstance(schema, Mapping):
            if schema is True:
                self._refuse(at, "a schema that takes anything")
            return schema
        for keyword in _REFUSED:
            if keyword in schema:
                self._refuse(at, f"`{keyword}`")
        made = {keyword: self._part(keyword, part, at) for keyword, part in schema.items() if keyword != "default"}
        if "default" in schema:
            self.changes.append(f"{at or 'schema'}: `default` left out")
        kinds = made.get("type")
        if kinds == "object" or (isinstance(kinds, list) and "object" in kinds) or "properties" in made:
            self._close(made, at)
        elif not made.keys() & {"type", "anyOf", "$ref", "enum", "const"}:
            self._refuse(at, "a schema without a type")
        return made

    def _part(self, keyword: str, part: Any, at: str) -> Any:
        if keyword in _MAPS and isinstance(part, Mapping):
            return {name: self.schema_at(one, _join(at, name)) for name, one in part.items()}
        if keyword in _SAID:
            return part
        if keyword == "anyOf" and isinstance(part, list):
            return [self.schema_at(one, at) for one in part]
        if keyword == "items":
            return self.schema_at(part, f"{at}[]")
        return part

    def _close(self, made: dict[str, Any], at: str) -> None:
        where = at or "schema"
        properties = made.get("properties")
        if made.get("additionalProperties", False) is not False:
            self._refuse(at, "an object of any keys (`additionalProperties`, dict[str, …])")
            return
        if not isinstance(properties, dict) or not properties:
            self._refuse(at, "an object without properties")
            return
        if "additionalProperties" not in made:
            self.changes.append(f"{where}: closed (`additionalProperties: false`)")
        made["additionalProperties"] = False
        required = made.get("required") or []
        optional = [name for name in properties if name not in required]
        for name in optional:
            properties[name] = _nullable(properties[name])
        if optional:
            self.changes.append(f"{where}: {', '.join(optional)} required, null where there is nothing")
        made["required"] = list(properties)

    def _refuse(self, at: str, what: str) -> None:
        self.problems.append(Problem(at or "schema", f"{what} is not possible in strict output"))


def _join(at: str, name: str) -> str:
    return f"{at}.{name}" if at else name


def _nullable(schema: Any) -> Any:
    if not isinstance(schema, dict):
        return schema
    kinds = schema.get("type")
    named = [kinds] if isinstance(kinds, str) else kinds
    if "enum" in schema:
        values = schema["enum"] if None in schema["enum"] else [*schema["enum"], None]
        typed = {"type": named if "null" in named else [*named, "null"]} if named else {}
        return {**schema, **typed, "enum": values}
    if "const" in schema:
        return {"anyOf": [schema, {"type": "null"}]}
    if named:
        return schema if "null" in named else {**schema, "type": [*named, "null"]}
    if "anyOf" in schema:
        options = schema["anyOf"]
        return schema if {"type": "null"} in options else {**schema, "anyOf": [*options, {"type": "null"}]}
    return {"anyOf": [schema, {"type": "null"}]}
