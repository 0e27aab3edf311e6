"""From a job's task to request bodies: the presets as prompts, and a compiled form that renders rows in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
import pyarrow as pa

from overnight.errors import TemplateError
from overnight.job.answer import Answer, label_schema, object_schema
from overnight.job.body import marked_body, named_tools
from overnight.job.job import Job
from overnight.job.marks import Marks, Slot
from overnight.job.parameters import merged
from overnight.job.schema import load_schema
from overnight.job.slots import Conversation, Errors, Parts
from overnight.job.strict import make_strict
from overnight.job.task import CHAT, COMPLETIONS, RESPONSES, Classify, Embed, Extract, Generate, Moderate, Raw, Respond
from overnight.job.template import Template, escape, escaped_column

_SHOWN_BYTES = 6_000
"""What an image, document or recording counts for in an estimate beside its own bytes, at four to a token: most images
are billed as 85 to 1,500 tokens, whatever their size (OpenAI's guide to images, November 2026)."""


def canonical(body: Mapping[str, Any]) -> bytes:
    """A body as compact JSON, its keys sorted. Inside them order stays: a schema's properties are written in it."""
    return msgspec.json.encode(dict(sorted(body.items())))


@dataclass(frozen=True)
class Bodies:
    """The request bodies of one batch of rows."""

    texts: list[bytes]
    """Canonical JSON, one per row; meaningless where the row has an error."""
    errors: dict[int, tuple[str, str]]
    """Position in the batch: error code and message."""


@dataclass(frozen=True)
class Prompt:
    """A task compiled against the columns of a dataset."""

    url: str
    pattern: bytes
    """The canonical body with `%b` for every column or rendered template."""
    slots: tuple[Slot, ...]
    """What fills the pattern, in order."""
    templates: tuple[Template, ...]
    columns: tuple[str, ...]
    """Those that the prompt is made of."""
    frame: int
    """Bytes of every body that are no prompt: keys, parameters, the model."""
    _renderers: dict[str, Callable[[pa.RecordBatch], Any]] = field(default_factory=dict, compare=False)

    def bodies(self, batch: pa.RecordBatch) -> Bodies:
        """Renders a batch. A row with a null where text is printed, or that cannot be rendered, is an error."""
        errors: dict[int, tuple[str, str]] = {}
        filled = [self._fill(slot, batch, errors) for slot in self.slots]
        texts = (
            [self.pattern % row for row in zip(*filled, strict=True)] if filled else [self.pattern % ()] * len(batch)
        )
        for column in {name for template in self.templates for name in template.required}:
            if batch[column].null_count:
                for position, null in enumerate(batch[column].is_null().to_pylist()):
                    if null:
                        errors[position] = ("null_input", f"column {column!r} is null")
        return Bodies(texts, errors)

    def _fill(self, slot: Slot, batch: pa.RecordBatch, errors: Errors) -> list[bytes]:
        if isinstance(slot, str):
            return escaped_column(batch[slot])
        if isinstance(slot, Parts | Conversation):
            return slot.fill(batch, errors)
        if slot.name not in self._renderers:
            self._renderers[slot.name] = slot.renderer()
        rendered = self._renderers[slot.name](batch)
        errors.update(rendered.errors)
        texts: list[bytes] = rendered.texts
        return texts


def compile_prompt(job: Job, schema: pa.Schema) -> Prompt:
    """Compiles a job's task (all kinds but `raw`).

    Raises:
        TemplateError: a template has an error or names an unknown column.
        JobError: the answer's schema cannot be read.
    """
    marks = Marks(schema)
    answer = answer_of(job)
    body = marked_body(job, answer, marks)
    columns = dict.fromkeys(name for one in marks.slots.values() for name in _columns(one))
    if not columns and not getattr(job.task, "constant", False):
        raise TemplateError(f"task.{_asking(job)} names no column, so every row would be asked the same: write "
                            f"{{{{ {next(iter(schema.names), 'column')} }}}} where the row's text goes, or set "
                            "task.constant: true")  # fmt: skip
    pattern, slots = marks.split(canonical({**merged(body, job.parameters), "model": job.model}))
    said = sum(len(escape(text)) for text in _texts(body)) - sum(map(len, marks.slots))
    said += sum(len(escape(text)) for one in marks.templates if one.plain for text in one.parts[0::2])
    schema_bytes = len(canonical(answer.schema)) if answer.schema else 0
    shown = sum(len(one.shown) for one in marks.slots.values() if isinstance(one, Parts))
    frame = len(pattern.replace(b"%b", b"").replace(b"%%", b"%")) - said - schema_bytes
    return Prompt(
        job.task.url,
        pattern,
        tuple(slots),
        tuple(marks.templates),
        tuple(columns),
        max(0, frame) - shown * _SHOWN_BYTES,
    )


def _asking(job: Job) -> str:
    """The field that says what to ask."""
    return next(name for name in ("prompt", "messages", "text", "input") if getattr(job.task, name, None))


def _columns(slot: Template | Parts | Conversation) -> tuple[str, ...]:
    match slot:
        case Parts(text=text, shown=shown):
            return (*text.columns, *(name for one in shown for name in one.template.columns))
        case Conversation(column=column, system=system):
            return (column, *(system.columns if system else ()))
        case Template(columns=columns):
            return columns


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a body that are prompt."""
    messages = body.get("messages", ())
    yield from (one["content"] for one in messages if isinstance(one, dict))
    if isinstance(messages, str):
        yield messages
    given = body.get("input")
    yield from (one["content"] for one in given) if isinstance(given, list) else ([given] if given else [])
    yield from (body[name] for name in ("prompt", "instructions") if name in body)


def definition_of(job: Job) -> dict[str, Any]:
    """What makes a job's requests and reads their answers, with a schema's file or model read in."""
    schema = answer_of(job).schema
    return job.definition() | {"schema": json.loads(json.dumps(schema))}


def answer_of(job: Job) -> Answer:
    """What a job's answers look like.

    Raises:
        JobError: the answer's schema cannot be read.
    """
    given = job.parameters
    several = isinstance(given.get("n"), int) and given["n"] != 1 and job.task.url in (CHAT, COMPLETIONS)
    asked = bool(given.get("logprobs") or given.get("top_logprobs"))
    return replace(_answer_kind(job), several=several, logprobs=asked and job.task.url in (CHAT, RESPONSES))


def _answer_kind(job: Job) -> Answer:
    match job.task:
        case Embed():
            return Answer.embedding()
        case Moderate():
            return Answer.moderation()
        case Raw():
            return Answer.raw()
        case Classify(labels=labels, label_name=name):
            structured = job.profile.structured_output == "json_schema"
            return Answer.label(tuple(labels), label_schema(name, labels) if structured else None)
        case Extract(fields=fields):
            return Answer.structured(object_schema(fields))
        case Generate(tools=tools) | Respond(tools=tools) if tools:
            schemas = {tool["name"]: tool.get("parameters", {}) for tool in named_tools(job.task)}
            return Answer.calls(schemas, required=job.task.tool_choice not in (None, "auto", "none"))
        case Generate(output_schema=schema) | Respond(output_schema=schema) if schema is not None:
            return Answer.structured(_held_schema(job, load_schema(schema))[0])
        case _:
            return Answer.text()


def _held_schema(job: Job, schema: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A schema as the provider gets it, and what was changed of it."""
    if job.profile.structured_output != "json_schema" or not getattr(job.task, "strict", True):
        return schema, []
    return make_strict(schema)


def schema_changes(job: Job) -> list[str]:
    """What was changed of the job's own schema, so that the provider can hold answers to it.

    Raises:
        JobError: the schema cannot be read, or cannot be held strictly.
    """
    source = getattr(job.task, "output_schema", None)
    return [] if source is None else _held_schema(job, load_schema(source))[1]
