"""JSON Schemas of answers: where they come from, and which typed columns they make."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema_rs
import pyarrow as pa
from pydantic import BaseModel

from overnight.errors import JobError

_SCALARS = {"string": pa.string(), "integer": pa.int64(), "number": pa.float64(), "boolean": pa.bool_()}
_MAX_DEPTH = 8
"""Nesting that is followed to find a column's type; a schema that refers to itself has no end."""


class Column(NamedTuple):
    """One property of a schema as a column."""

    name: str
    type: pa.DataType
    nested: bool
    """Objects and mixed values: kept as JSON text."""


def load_schema(source: Mapping[str, Any] | str) -> dict[str, Any]:
    """Reads a JSON Schema: inline, `module:PydanticModel`, or a file.

    Raises:
        JobError: it cannot be found, is no JSON Schema, or does not describe an object.
    """
    schema = dict(source) if isinstance(source, Mapping) else _from_name(source)
    check_schema(schema, "task.schema")
    if schema.get("type") != "object" or not schema.get("properties"):
        raise JobError("task.schema has to describe an object with properties: each becomes a column of the answers")
    return schema


def check_schema(schema: Any, name: str) -> None:
    """Refuses what is no JSON Schema.

    Args:
        schema: what is taken for one.
        name: the field of the job that it stands in.

    Raises:
        JobError: says what is wrong with it.
    """
    try:
        jsonschema_rs.validator_for(schema)
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise JobError(f"{name} is not a valid JSON Schema: {str(error).splitlines()[0]}") from None


def _from_name(source: str) -> dict[str, Any]:
    path = Path(source)
    module, colon, name = source.partition(":")
    if path.is_file():
        try:
            loaded = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise JobError(f"task.schema: {source} is not valid JSON: {error}") from None
        if not isinstance(loaded, dict):
            raise JobError(f"task.schema: {source} is not a JSON object")
        return loaded
    if not colon or path.suffix == ".json":
        raise JobError(f"task.schema: there is no file {source}; give a schema, a file, or module:PydanticModel")
    try:
        model = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise JobError(f"task.schema: cannot import {source}: {error}") from None
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        raise JobError(f"task.schema: {source} is not a Pydantic model")
    closed: dict[str, Any] = _strict(model.model_json_schema())
    return closed


def _strict(schema: Any) -> Any:
    """Closes the objects of a generated schema: OpenAI's strict mode wants every property required and no others."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _strict_part(key, part) for key, part in schema.items() if key != "default"}
    if closed.get("type") == "object" and isinstance(closed.get("properties"), dict):
        closed |= {"required": list(closed["properties"]), "additionalProperties": False}
    return closed


def _strict_part(keyword: str, part: Any) -> Any:
    if keyword in ("properties", "$defs") and isinstance(part, dict):  # their keys are names, whatever they say
        return {name: _strict(one) for name, one in part.items()}
    return _strict(part)


def columns_of(schema: Mapping[str, Any]) -> tuple[Column, ...]:
    """The typed columns of an object schema, in the order of its properties."""
    return tuple(_column(name, part, schema) for name, part in schema["properties"].items())


def _column(name: str, part: Mapping[str, Any], root: Mapping[str, Any]) -> Column:
    kind = _arrow_type(part, root)
    return Column(name, pa.string() if kind is None else kind, nested=kind is None)


def _arrow_type(part: Any, root: Mapping[str, Any], depth: int = 0) -> pa.DataType | None:
    """None for what has no flat Arrow type, which a schema that refers to itself never has."""
    if depth > _MAX_DEPTH:
        return None
    part = _resolved(part, root)
    kinds = part.get("type")
    options = [one for one in part.get("anyOf", ()) if _resolved(one, root).get("type") != "null"]
    if kinds is None and len(options) == 1:
        return _arrow_type(options[0], root, depth + 1)
    if kinds is None and (values := part.get("enum", [part["const"]] if "const" in part else None)):
        return pa.string() if all(isinstance(value, str) for value in values) else None
    names = [kind for kind in ([kinds] if isinstance(kinds, str) else kinds or []) if kind != "null"]
    if names == ["array"]:
        item = _arrow_type(part.get("items", {}), root, depth + 1)
        return pa.list_(item) if item is not None else None
    return _SCALARS.get(names[0]) if len(names) == 1 else None


def _resolved(part: Any, root: Mapping[str, Any]) -> Mapping[str, Any]:
    """Follows one local reference, such as `#/$defs/Address`."""
    if not isinstance(part, Mapping):
        return {}
    reference = part.get("$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return part
    found: Any = root
    for key in reference[2:].split("/"):
        found = found.get(key, {}) if isinstance(found, Mapping) else {}
    return found if isinstance(found, Mapping) and "$ref" not in found else {}
