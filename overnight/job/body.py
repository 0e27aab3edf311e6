"""From a job's task to the body of its requests, with marks where each row's own goes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from overnight.errors import JobError, TemplateError
from overnight.job.answer import Answer
from overnight.job.job import Job
from overnight.job.marks import Marks
from overnight.job.media import Kind
from overnight.job.schema import check_schema
from overnight.job.slots import Conversation, Parts, Shown, whole_column
from overnight.job.task import (
    RESPONSES,
    Classify,
    Complete,
    Embed,
    Extract,
    Generate,
    Media,
    Message,
    Moderate,
    Raw,
    Respond,
    Summarize,
    Translate,
)
from overnight.job.template import compile_template
from overnight.text import did_you_mean


class Chat(NamedTuple):
    """What a chat task comes down to: texts, with marks where templates go."""

    system: str | None
    messages: list[dict[str, Any]] | str
    """In turn; or a mark where the whole conversation goes."""


def marked_body(job: Job, answer: Answer, marks: Marks) -> dict[str, Any]:
    """The body of a task, without model and parameters.

    Raises:
        TemplateError: a template has an error or names an unknown column.
        JobError: the task cannot be said to the provider.
    """
    match job.task:
        case Embed(input=text) | Moderate(input=text):
            return {"input": marks.put("task.input", text)}
        case Complete(prompt=text):
            return {"prompt": marks.put("task.prompt", text)}
        case Respond(input=text, instructions=instructions):
            given: Any = marks.put("task.input", text) if not _shows(job) else [
                {"role": "user", "content": _content(job, "task.input", text, marks)}
            ]  # fmt: skip
            body: dict[str, Any] = {"input": given}
            if instructions:
                body["instructions"] = marks.put("task.instructions", instructions)
            if answer.kind == "json":
                strict = job.task.strict
                form = {"type": "json_schema", "name": "answer", "schema": answer.schema, "strict": strict}
                body["text"] = {"format": form}
            return body | _tools(job.task)
        case Raw():
            raise JobError("raw requests have no prompt")
        case _:
            return _chat_body(job, _chat(job, answer, marks), answer)


def _shows(job: Job) -> list[tuple[Kind, str, str]]:
    """What a task shows beside its text: kind, field of the job, template."""
    fields: tuple[tuple[Kind, str], ...] = (("image", "images"), ("file", "files"), ("audio", "audio"))
    found = []
    for kind, name in fields:
        media: Media = getattr(job.task, name, None)
        sources = [media] if isinstance(media, str) else list(media or ())
        found += [(kind, f"task.{name}", source) for source in sources]
    return found


def _content(job: Job, name: str, source: str, marks: Marks) -> str:
    """A message's content: a text, or parts where the task shows something."""
    if not (shows := _shows(job)):
        return marks.put(name, source)
    text = marks.compile(name, source)
    # Not among the marks' own templates: a null is no image here, where in a text it is an error of the row.
    shown = tuple(Shown(kind, compile_template(field, one, marks.schema)) for kind, field, one in shows)
    responses, fetched = job.task.url == RESPONSES, job.profile.fetches_addresses
    return marks.stand(Parts(text, shown, responses, fetched, _media_folders(job)))


def _media_folders(job: Job) -> tuple[Path, ...]:
    """The folders that a row's local paths may lead into; relative ones start at the first."""
    if (given := getattr(job.task, "media_folder", None)) is not None:
        return (Path(given).expanduser().resolve(),)
    dataset = Path(job.dataset.path).expanduser().resolve()
    return (Path.cwd(), dataset if dataset.is_dir() else dataset.parent)


def _messages(job: Job, messages: Sequence[Message], marks: Marks) -> list[dict[str, Any]]:
    """A list of messages; what the task shows stands in the last of the user."""
    last = max((at for at, one in enumerate(messages) if one.role == "user"), default=None)
    if _shows(job) and last is None:
        raise JobError("task.messages has no message of the user, for the images, files or audio to stand in")
    return [
        {"role": one.role, "content": _content(job, f"task.messages.{at}", one.content, marks) if at == last else
            marks.put(f"task.messages.{at}", one.content)}
        for at, one in enumerate(messages)
    ]  # fmt: skip


def _conversation(task: Generate, column: str, marks: Marks) -> str:
    name = whole_column(column) or column
    if name not in marks.schema.names:
        raise TemplateError(
            f"task.messages: the dataset has no column {name!r}{did_you_mean(name, marks.schema.names)}"
        )
    return marks.stand(Conversation(name, marks.compile("task.system", task.system) if task.system else None))


def _tools(task: Generate | Respond) -> dict[str, Any]:
    """The functions that the model may call, in the endpoint's form."""
    if not task.tools:
        return {}
    flat = isinstance(task, Respond)
    tools = [
        {"type": "function", **tool} if flat else {"type": "function", "function": tool} for tool in named_tools(task)
    ]
    choice: Any = task.tool_choice
    if choice is not None and choice not in ("auto", "required", "none"):
        choice = {"type": "function", "name": choice} if flat else {"type": "function", "function": {"name": choice}}
    return {"tools": tools} | ({"tool_choice": choice} if choice is not None else {})


def named_tools(task: Generate | Respond) -> list[dict[str, Any]]:
    """The functions of a task, without the wrapping that some references show.

    Raises:
        JobError: one has no name, stands twice, or has no valid schema; or `tool_choice` names none.
    """
    tools: list[dict[str, Any]] = []
    for number, tool in enumerate(task.tools):
        inner = tool.get("function", tool)
        if not isinstance(inner, dict) or not isinstance(inner.get("name"), str):
            raise JobError(f"task.tools.{number} has no name: write name, description and parameters")
        tools.append({key: value for key, value in inner.items() if key != "type"})
        check_schema(tools[-1].get("parameters", {}), f"task.tools.{number}.parameters")
    names = [tool["name"] for tool in tools]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise JobError(f"task.tools has two functions named {', '.join(twice)}")
    choice = task.tool_choice
    if choice is not None and choice not in ("auto", "required", "none", *names):
        raise JobError(f"task.tool_choice names no function {choice!r}{did_you_mean(choice, names)}")
    return tools


def _chat(job: Job, answer: Answer, marks: Marks) -> Chat:
    task = job.task
    if isinstance(task, Generate):
        if isinstance(task.messages, str):
            return Chat(None, _conversation(task, task.messages, marks))
        system = marks.put("task.system", task.system) if task.system else None
        if task.messages is not None:
            return Chat(system, _messages(job, task.messages, marks))
        return Chat(system, [_user(job, "task.prompt", task.prompt or "", marks)])
    assert isinstance(task, Summarize | Translate | Classify | Extract)  # noqa: S101 - the kinds that chat
    user = [_user(job, "task.text", task.text, marks)]
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


def _user(job: Job, name: str, source: str, marks: Marks) -> dict[str, Any]:
    return {"role": "user", "content": _content(job, name, source, marks)}


def _chat_body(job: Job, chat: Chat, answer: Answer) -> dict[str, Any]:
    system, support = chat.system, job.profile.structured_output
    body: dict[str, Any] = _tools(job.task) if isinstance(job.task, Generate) else {}
    if answer.schema is not None and support == "json_schema":
        form = {"name": "answer", "schema": answer.schema, "strict": getattr(job.task, "strict", True)}
        body["response_format"] = {"type": "json_schema", "json_schema": form}
    elif answer.schema is not None:
        wanted = f"Reply with one JSON object that fits this JSON Schema: {json.dumps(answer.schema)}"
        system = f"{system}\n{wanted}" if system else wanted
        if support == "json_object":
            body["response_format"] = {"type": "json_object"}
    if isinstance(chat.messages, str):
        if system:
            raise JobError("task.messages names a column of conversations, and the provider takes no JSON Schema: say "
                           "in them what the answer looks like, and leave task.schema out")  # fmt: skip
        return body | {"messages": chat.messages}
    messages = [{"role": "system", "content": system}] if system else []
    return body | {"messages": [*messages, *chat.messages]}


def _sentences(*sentences: str | None) -> str:
    return " ".join(sentence for sentence in sentences if sentence)
