"""From a job's task to request bodies: the presets as prompts, and a compiled form that renders rows in batches."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from uuid import uuid4

import msgspec
import pyarrow as pa

from overnight.errors import JobError
from overnight.job.answer import Answer, label_schema, object_schema
from overnight.job.job import (
    Classify,
    Complete,
    Embed,
    Extract,
    Generate,
    Job,
    Moderate,
    Raw,
    Respond,
    Summarize,
    Translate,
)
from overnight.job.schema import load_schema
from overnight.job.template import Template, compile_template, escape, escaped_column

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
EMBEDDINGS, COMPLETIONS, MODERATIONS = "/v1/embeddings", "/v1/completions", "/v1/moderations"


def canonical(body: Mapping[str, Any]) -> bytes:
    """A body as compact JSON, its keys sorted. Inside them order stays: a schema's properties are written in it."""
    return msgspec.json.encode(dict(sorted(body.items())))


class Chat(NamedTuple):
    """What a chat preset comes down to: texts, with marks where templates go."""

    system: str | None
    user: str


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
    slots: tuple[str | Template, ...]
    """What fills the pattern, in order: a column's name, or a template."""
    templates: tuple[Template, ...]
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

    def _fill(self, slot: str | Template, batch: pa.RecordBatch, errors: dict[int, tuple[str, str]]) -> list[bytes]:
        if isinstance(slot, str):
            return escaped_column(batch[slot])
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
    marks = _Marks(schema)
    answer = answer_of(job)
    body = _body(job, answer, marks)
    pattern, slots = marks.split(canonical({**body, **job.parameters, "model": job.model}))
    said = sum(len(escape(text)) for text in _texts(body)) - sum(map(len, marks.templates))
    said += sum(len(escape(text)) for one in marks.templates.values() if one.plain for text in one.parts[0::2])
    schema = len(canonical(answer.schema)) if answer.schema else 0
    frame = len(pattern.replace(b"%b", b"").replace(b"%%", b"%")) - said - schema
    return Prompt(url_of(job), pattern, tuple(slots), tuple(marks.templates.values()), max(0, frame))


def _texts(body: Mapping[str, Any]) -> Iterator[str]:
    """The texts of a body that are prompt."""
    yield from (message["content"] for message in body.get("messages", ()))
    yield from (body[name] for name in ("input", "prompt", "instructions") if name in body)


def definition_of(job: Job) -> dict[str, Any]:
    """What makes a job's requests and reads their answers, with a schema's file or model read in."""
    schema = answer_of(job).schema
    return job.definition() | {"schema": json.loads(json.dumps(schema))}


def url_of(job: Job) -> str:
    """The endpoint that a job's requests go to; a batch JSONL file may name others."""
    match job.task:
        case Embed():
            return EMBEDDINGS
        case Moderate():
            return MODERATIONS
        case Complete():
            return COMPLETIONS
        case Respond():
            return RESPONSES
        case Raw(url=url):
            return url
        case _:
            return CHAT


def answer_of(job: Job) -> Answer:
    """What a job's answers look like.

    Raises:
        JobError: the answer's schema cannot be read.
    """
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
        case Generate(output_schema=schema) | Respond(output_schema=schema) if schema is not None:
            return Answer.structured(load_schema(schema))
        case _:
            return Answer.text()


class _Marks:
    """Stands a mark into the body for each template, to be found again in the encoded JSON."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self.templates: dict[str, Template] = {}

    def put(self, name: str, source: str) -> str:
        mark = f"<{uuid4().hex}>"
        self.templates[mark] = compile_template(name, source, self.schema)
        return mark

    def split(self, encoded: bytes) -> tuple[bytes, list[str | Template]]:
        """The body as a `%b` pattern, and what fills it."""
        pattern, slots = b"", list[str | Template]()
        at = 0
        for start, mark in sorted((encoded.index(mark.encode()), mark) for mark in self.templates):
            pattern += encoded[at:start].replace(b"%", b"%%")
            inner, filled = _inline(self.templates[mark])
            pattern, slots = pattern + inner, slots + filled
            at = start + len(mark)
        return pattern + encoded[at:].replace(b"%", b"%%"), slots


def _inline(template: Template) -> tuple[bytes, list[str | Template]]:
    if not template.plain:
        return b"%b", [template]
    constant, columns = template.parts[0::2], template.parts[1::2]
    return b"%b".join(escape(text).replace(b"%", b"%%") for text in constant), list(columns)


def _body(job: Job, answer: Answer, marks: _Marks) -> dict[str, Any]:
    match job.task:
        case Embed(input=text) | Moderate(input=text):
            return {"input": marks.put("task.input", text)}
        case Complete(prompt=text):
            return {"prompt": marks.put("task.prompt", text)}
        case Respond(input=text, instructions=instructions):
            body: dict[str, Any] = {"input": marks.put("task.input", text)}
            if instructions:
                body["instructions"] = marks.put("task.instructions", instructions)
            if answer.schema is not None:
                form = {"type": "json_schema", "name": "answer", "schema": answer.schema, "strict": True}
                body["text"] = {"format": form}
            return body
        case Raw():
            raise JobError("raw requests have no prompt")
        case _:
            return _chat_body(job, _chat(job.task, answer, marks), answer)


def _chat(task: Generate | Summarize | Translate | Classify | Extract, answer: Answer, marks: _Marks) -> Chat:
    if isinstance(task, Generate):
        system = marks.put("task.system", task.system) if task.system else None
        return Chat(system, marks.put("task.prompt", task.prompt))
    user = marks.put("task.text", task.text)
    match task:
        case Summarize():
            length = "one sentence" if task.sentences == 1 else f"{task.sentences} sentences"
            form = f"Reply with a summary of {length}, {task.style}, and nothing else."
            return Chat(f"You summarize texts. {form}", user)
        case Translate():
            origin = f" from {task.source_language}" if task.source_language else ""
            form = "Reply with the translation and nothing else."
            return Chat(f"You translate texts{origin} into {task.target_language}. {form}", user)
        case Classify(labels=labels, label_name=name):
            named = [f"{one} ({labels[one]})" for one in labels] if isinstance(labels, Mapping) else list(labels)
            wanted = f"{', '.join(named[:-1])} or {named[-1]}"
            role = f"You are a {name} classifier." if name != "label" else "You are a classifier."
            form = "" if answer.schema else "Reply with the label and nothing else."
            system = _sentences(role, f"Decide whether the text is {wanted}.", task.instructions, form)
            return Chat(system, user)
        case Extract():
            form = "Give each field as the text states it, and null where it does not."
            return Chat(_sentences("You extract facts from texts.", form, task.instructions), user)


def _chat_body(job: Job, chat: Chat, answer: Answer) -> dict[str, Any]:
    system, support = chat.system, job.profile.structured_output
    body: dict[str, Any] = {}
    if answer.schema is not None and support == "json_schema":
        form = {"name": "answer", "schema": answer.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif answer.schema is not None:
        wanted = f"Reply with one JSON object that fits this JSON Schema: {json.dumps(answer.schema)}"
        system = f"{system}\n{wanted}" if system else wanted
        if support == "json_object":
            body["response_format"] = {"type": "json_object"}
    messages = [{"role": "system", "content": system}] if system else []
    return body | {"messages": [*messages, {"role": "user", "content": chat.user}]}


def _sentences(*sentences: str | None) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
