"""Reads a job from a YAML file, a dict or a `Job`, with errors that name the line and the mend."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from overnight.errors import JobError, Problem
from overnight.job.job import Job, ProviderChoice
from overnight.job.task import Task
from overnight.text import did_you_mean

_YAML_MENDS = {
    "found unhashable key": 'put quotes around templates: prompt: "{{ review }}"',
    "mapping values are not allowed here": "put quotes around a text that holds a colon",
    "found character '\\t'": "indent with spaces, not with tabs",
    "while scanning a simple key": "put quotes around the text",
}
_GROUPS = {
    "provider": "provider: {{profile: {}}}", "dataset": "dataset: {{path: {}}}", "limits": "limits: {{max_rows: {}}}",
    "output": "output: {{prefix: {}}}", "report": "report: {{compare: {}}}", "task": "task: {{kind: {}, …}}",
    "parameters": "parameters: {{max_tokens: 64}}",
}  # fmt: skip
"""How a group of settings is written, where one value stands in its place."""
_WORDS = {"integer": "a whole number", "string": "text", "boolean": "true or false", "number": "a number"}


class _Document(NamedTuple):
    """A job as plain values, and where they stand."""

    name: str
    """How messages call it: the file's path, or `job`."""
    values: dict[str, Any]
    lines: dict[tuple[str, ...], int]
    """Path of a key: its line, from 1."""
    overridden: Mapping[tuple[str, ...], str] = types.MappingProxyType({})
    """Path of a key that is set over the file's: how it was set."""


def load_job(source: Job | Mapping[str, Any] | Path | str, overrides: Iterable[str] = ()) -> Job:
    """Reads and checks a job.

    Args:
        source: a `Job`, its fields as a dict, or the path of a YAML file.
        overrides: `dotted.key=value` settings, the value read as YAML, applied before the check.

    Raises:
        JobError: the file cannot be read, or fields are unknown, missing or wrong; lists all of them with their lines.
    """
    if isinstance(source, Job) and not overrides:
        return source
    if isinstance(source, Job):
        document = _Document("job", source.model_dump(mode="json", by_alias=True), {})
    elif isinstance(source, Mapping):
        document = _Document("job", dict(source), {})
    else:
        document = _read_yaml(Path(source))
    values = with_overrides(document.values, given := tuple(overrides))
    document = document._replace(values=values, overridden=_overridden(given))
    try:
        return Job.model_validate(values)
    except ValidationError as invalid:
        problems = _problems(invalid.errors(include_url=False), document)
        raise JobError(f"{document.name} is not a valid job:", problems) from None


def read_provider(values: Mapping[str, Any]) -> ProviderChoice:
    """Reads and checks the provider part of a job by itself.

    Raises:
        JobError: lists what is wrong.
    """
    document = _Document("provider", {"provider": dict(values)}, {})
    try:
        return ProviderChoice.model_validate(document.values["provider"])
    except ValidationError as invalid:
        errors = [{**error, "loc": ("provider", *error["loc"])} for error in invalid.errors(include_url=False)]
        problems = _problems([cast(ErrorDetails, error) for error in errors], document)
        raise JobError("this is no provider:", problems) from None


def _read_yaml(path: Path) -> _Document:
    try:
        text = path.read_text(encoding="utf-8-sig")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise JobError(f"the job file {path} is not UTF-8 text") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        said = str(getattr(error, "problem", None) or error)
        mend = next((f"; {mend}" for sign, mend in _YAML_MENDS.items() if sign in said), "")
        raise JobError(f"{where}: not valid YAML: {said}{mend}") from None
    if not isinstance(values, dict):
        raise JobError(f"{path} holds no job: it has to be a mapping with `name`, `dataset`, `task`, …")
    lines: dict[tuple[str, ...], int] = {}
    twice: list[Problem] = []
    _collect_lines(root, (), lines, twice, str(path))
    if twice:
        raise JobError(f"{path} is not a valid job:", twice)
    return _Document(str(path), values, lines)


def _collect_lines(
    node: yaml.Node | None, at: tuple[str, ...], lines: dict[tuple[str, ...], int], twice: list[Problem], file: str
) -> None:
    """Notes the line of every key and item; YAML itself lets a second key of one name silently win."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            place = (*at, str(key.value))
            if place in lines:
                twice.append(Problem(f"{file}:{key.start_mark.line + 1}", f"`{key.value}` stands here a second time"))
            lines[place] = key.start_mark.line + 1
            _collect_lines(value, place, lines, twice, file)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[(*at, str(index))] = value.start_mark.line + 1
            _collect_lines(value, (*at, str(index)), lines, twice, file)


def with_overrides(values: Mapping[str, Any], overrides: Iterable[str]) -> dict[str, Any]:
    """Settings with `dotted.key=value` ones over them, each value read as YAML.

    Raises:
        JobError: one of them is not of that form.
    """
    changed = dict(values)
    for override in overrides:
        changed = _with_override(changed, override)
    return changed


def _with_override(values: Mapping[str, Any], override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise JobError(f"--set {override}: write it as key=value, such as --set limits.max_requests=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    return _put(values, key.strip().split("."), value, override)


def _overridden(overrides: Iterable[str]) -> dict[tuple[str, ...], str]:
    """How each overridden key was set."""
    return {tuple(one.partition("=")[0].strip().split(".")): f"--set {one}" for one in overrides}


def _put(values: Mapping[str, Any], keys: list[str], value: Any, override: str) -> dict[str, Any]:
    first, rest = keys[0], keys[1:]
    if not rest:
        return {**values, first: value}
    inner = values.get(first) or {}
    if not isinstance(inner, Mapping):
        raise JobError(f"--set {override}: `{first}` is not a group of settings")
    return {**values, first: _put(inner, rest, value, override)}


def _problems(errors: Iterable[ErrorDetails], document: _Document) -> list[Problem]:
    """One problem for each field that is wrong: where several forms are possible, what the first would want."""
    found: dict[tuple[str, ...], Problem] = {}
    for error in errors:
        found.setdefault(_without_tags(error["loc"], document.values), _problem(error, document))
    return list(found.values())


def _problem(error: ErrorDetails, document: _Document) -> Problem:
    path = _without_tags(error["loc"], document.values)
    name = ".".join(path) or "job"
    parents = [path[:end] for end in range(len(path), 0, -1)]
    line = next((document.lines[one] for one in parents if one in document.lines), None)
    where = next((document.overridden[one] for one in parents if one in document.overridden),
                 f"{document.name}:{line}" if line else document.name)  # fmt: skip
    match error["type"]:
        case "extra_forbidden":
            message = f"`{name}` is not a known field{did_you_mean(path[-1], _fields_at(path[:-1], document.values))}"
        case "missing":
            message = f"`{name}` is missing"
        case "union_tag_invalid":
            kinds = _task_models()
            message = f"`task.kind` {error['ctx']['tag']!r} is not known{did_you_mean(error['ctx']['tag'], kinds)}"
        case "union_tag_not_found":
            message = f"`task.kind` is missing; there are: {', '.join(_task_models())}"
        case "value_error":
            message = str(error["ctx"]["error"])
        case "model_type" | "model_attributes_type" | "dict_type":
            example = _GROUPS.get(name, "").format(error["input"] if isinstance(error["input"], str) else "…")
            write = f": write {example}" if example else ""
            message = f"`{name}` is a group of settings{write} (it is {error['input']!r:.60})"
        case "tuple_type" | "list_type":
            message = f"`{name}` has to be a list: write [{error['input']!s:.60}]"
        case _:
            said = error["msg"].removeprefix("Input should be ").removeprefix("a valid ").split(", unable")[0]
            message = f"`{name}` has to be {_WORDS.get(said, said)} (it is {error['input']!r:.60})"
    return Problem(where, message)


def _without_tags(location: tuple[int | str, ...], values: Any) -> tuple[str, ...]:
    """The keys as the file has them: pydantic puts the names of a union's members between them."""
    path: list[str] = []
    for index, part in enumerate(location):
        last = index == len(location) - 1
        if isinstance(values, Mapping) and (part in values or last):
            values = values.get(part)
        elif isinstance(values, list | tuple) and isinstance(part, int):
            values = values[part] if part < len(values) else None
        else:
            continue
        path.append(str(part))
    return tuple(path)


def _fields_at(path: tuple[str, ...], values: Mapping[str, Any]) -> list[str]:
    """The names that the model at `path` knows."""
    model: type[BaseModel] = Job
    for part in path:
        if part == "task":
            model = _task_models().get(str((values.get("task") or {}).get("kind")), Job)
        elif (field := model.model_fields.get(part)) and (inner := _model_in(field.annotation)):
            model = inner
    return [field.alias or name for name, field in model.model_fields.items()]


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((one for one in options if isinstance(one, type) and issubclass(one, BaseModel)), None)


def _task_models() -> dict[str, type[BaseModel]]:
    members = get_args(get_args(Task)[0])
    return {get_args(member.model_fields["kind"].annotation)[0]: member for member in members}


def job_schema() -> dict[str, Any]:
    """The JSON Schema of job files, for editors."""
    schema = TypeAdapter(Job).json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def choose_provider(provider: ProviderChoice | Mapping[str, Any] | str) -> ProviderChoice:
    """A provider as the management flows take it: its settings, a profile's name, or a job file that names it.

    Raises:
        JobError: the name is not known, or the file cannot be read.
    """
    if isinstance(provider, ProviderChoice):
        return provider
    if isinstance(provider, Mapping):
        return read_provider(provider)
    if Path(provider).suffix in (".yaml", ".yml", ".json"):
        return load_job(provider).provider
    return read_provider({"profile": provider})
