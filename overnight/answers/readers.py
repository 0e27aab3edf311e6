"""How each kind of answer is read out of a result line, and judged."""

from __future__ import annotations

import base64
import binascii
import re
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import jsonschema_rs
import msgspec
import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from overnight.answers.bodies import Body, Said, decode_body, reply_with, said_in
from overnight.answers.lines import ResultLine, is_empty
from overnight.answers.logprobs import label_probability, mean_logprob
from overnight.answers.verdicts import Reply, failure, http_failure
from overnight.answers.wrappers import json_in, thought_and_rest
from overnight.job.answer import Answer
from overnight.job.schema import Column

_CUT = frozenset({"length", "max_tokens", "max_output_tokens"})


def answer_reader(answer: Answer) -> Callable[[ResultLine], Reply]:
    """A function that understands the result lines of a task; it holds the compiled schema, which cannot be pickled."""
    judge = _judge(answer)

    def read(line: ResultLine) -> Reply:
        if line.unreadable is not None:
            return Reply("invalid", error_code="unreadable_line", error_message=line.unreadable)
        if line.error_code is not None:
            return failure(line.status, line.error_code, line.error_message)
        if line.body is None or not 200 <= (line.status if line.status is not None else 200) < 300:
            return http_failure(line)
        try:
            body = decode_body(line.body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            return Reply("invalid", error_code="unreadable_body", error_message=str(error))
        return judge(body) if body.error is None or is_empty(body.error) else http_failure(line)

    return read


def _judge(answer: Answer) -> Callable[[Body], Reply]:
    match answer.kind:
        case "embedding":
            return _read_embedding
        case "moderation":
            return _read_moderation
        case "label":
            one = _label_reader(answer.labels, structured=answer.schema is not None)
        case "json":
            one = _json_reader(dict(answer.schema or {}), answer.columns)
        case "calls":
            one = _call_reader(answer.tools, required=answer.must_call)
        case "raw" | "text":
            one = _read_text
    judge = _said_reader(one, raw=answer.kind == "raw", logprobs=answer.logprobs)
    return _each_choice(judge) if answer.several else judge


Judge = Callable[[Body, Said], Reply]
"""Judges what was said, once it is known that something was."""


def _said_reader(judge: Judge, *, raw: bool, logprobs: bool) -> Callable[[Body], Reply]:
    """What holds for any generated answer: its thoughts are told apart, and it may be refused, cut, or empty."""

    def read(body: Body) -> Reply:
        if raw and not body.choices and body.output is None and body.content is None:
            return reply_with(body, "succeeded", None)  # an embedding, a moderation: nothing is known of what was asked
        said = said_in(body)
        if said.text and not said.calls:
            thought, text = thought_and_rest(said.text)
            if text is not said.text:
                said = replace(said, text=text, reasoning=said.reasoning or thought)
        reply = _common(body, said) or judge(body, said)
        if said.reasoning is not None:
            reply = replace(reply, reasoning=said.reasoning)
        if not logprobs:
            return reply
        return replace(
            reply,
            logprob=mean_logprob(body),
            probability=label_probability(body, said.text or "") if reply.verdict == "succeeded" else None,
        )

    return read


def _each_choice(judge: Callable[[Body], Reply]) -> Callable[[Body], Reply]:
    """All answers of a request that asks for several: it succeeded where one of them did, and that is the answer."""

    def read(body: Body) -> Reply:
        choices = body.choices or []
        if len(choices) < 2:
            reply = judge(body)
            return replace(reply, answers=(reply.answer if reply.verdict == "succeeded" else None,))
        replies = [judge(replace(body, choices=[one])) for one in choices]
        best = next((reply for reply in replies if reply.verdict == "succeeded"), replies[0])
        return replace(best, answers=tuple(one.answer if one.verdict == "succeeded" else None for one in replies))

    return read


def _common(body: Body, said: Said) -> Reply | None:
    """The verdict that holds for any generated answer: refused, cut, or empty. None: there is an answer to judge."""
    if said.refusal or said.finish_reason == "content_filter":
        return reply_with(body, "refused", said.text, code="refusal", message=said.refusal or "content filter")
    plain = bool(body.choices) and body.choices[0].message is None if body.choices else False
    if said.finish_reason in _CUT:
        if plain:
            return None  # a plain completion goes on until it is stopped
        return reply_with(body, "invalid", said.text, code="cut", message="the answer was cut by its token limit")
    if said.text is None or not (plain or (said.text and not said.text.isspace())):
        return reply_with(body, "invalid", None, code="no_answer", message="the response holds no text")
    return None


def _read_text(body: Body, said: Said) -> Reply:
    return reply_with(body, "succeeded", said.text)


def _call_reader(tools: Mapping[str, Any], *, required: bool) -> Judge:
    validators = {name: jsonschema_rs.validator_for(schema) for name, schema in tools.items()}

    def judge(body: Body, said: Said) -> Reply:
        if not said.calls:
            if required:
                return reply_with(body, "invalid", said.text, code="no_tool_call", message="no function was called")
            return reply_with(body, "succeeded", said.text)
        for call in said.calls:
            if call.name not in validators:
                there = ", ".join(validators)
                return reply_with(body, "invalid", said.text, code="unknown_tool",
                                  message=f"there is no function {call.name!r}; there are: {there}")  # fmt: skip
            try:
                arguments = msgspec.json.decode(call.arguments or "{}")
            except msgspec.DecodeError as error:
                return reply_with(body, "invalid", said.text, code="invalid_json", message=f"{call.name}: {error}")
            if (wrong := next(validators[call.name].iter_errors(arguments), None)) is not None:
                where = "/".join([call.name, *map(str, wrong.instance_path)])
                return reply_with(body, "invalid", said.text, code="schema_violation",
                                  message=f"{where}: {wrong.message}")  # fmt: skip
        return reply_with(body, "succeeded", said.text, (said.calls[0].name, said.calls[0].arguments or "{}"))

    return judge


def _label_reader(labels: tuple[str, ...], *, structured: bool) -> Judge:
    forms = Counter(_plain(label) for label in labels)
    known = {_plain(label): label for label in labels if forms[_plain(label)] == 1}
    known |= {label: label for label in labels}

    def judge(body: Body, said: Said) -> Reply:
        text = said.text or ""
        label = _structured_label(text) if structured else text
        if (found := known.get(label.strip()) or known.get(_plain(label))) is not None:
            return reply_with(body, "succeeded", found)
        return reply_with(body, "invalid", text, code="unknown_label", message=f"not one of {', '.join(labels)}")

    return judge


def _json_value(text: str) -> tuple[str, Any]:
    """The JSON in an answer: as text, and read."""
    try:
        return text, msgspec.json.decode(text)
    except msgspec.DecodeError:
        found = json_in(text)
        return found, msgspec.json.decode(found)


def _structured_label(text: str) -> str:
    try:
        _, value = _json_value(text)
    except msgspec.DecodeError:
        return text
    return str(next(iter(value.values()), "")) if isinstance(value, dict) else str(value)


def _plain(label: str) -> str:
    """A label as models vary it: case, spaces, quotes, a full stop."""
    return re.sub(r"[\W_]+", " ", label.casefold()).strip() or label


def _json_reader(schema: dict[str, Any], columns: tuple[Column, ...]) -> Judge:
    validator = jsonschema_rs.validator_for(schema)

    def judge(body: Body, said: Said) -> Reply:
        text = said.text or ""
        try:
            found, value = _json_value(text)
        except msgspec.DecodeError as error:
            return reply_with(body, "invalid", text, code="invalid_json", message=str(error))
        if (wrong := next(validator.iter_errors(value), None)) is not None:
            where = "/".join(str(part) for part in wrong.instance_path) or "the answer"
            return reply_with(body, "invalid", text, code="schema_violation", message=f"{where}: {wrong.message}")
        try:
            cells = [_cell(value.get(column.name), column) for column in columns]
        except (OverflowError, ValueError, TypeError) as error:
            return reply_with(
                body, "invalid", text, code="schema_violation", message=f"does not fit its column: {error}"
            )
        return reply_with(body, "succeeded", found, cells)

    return judge


def _cell(value: Any, column: Column) -> Any:
    if column.nested and value is not None:
        return msgspec.json.encode(value).decode()
    return _typed(value, column.type)


def _typed(value: Any, kind: pa.DataType) -> Any:
    """A JSON value as its Arrow type takes it: schemas allow 3.0 for an integer, and integers of any size."""
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [_typed(item, kind.value_type) for item in value]
    if kind == pa.float64():
        return float(value)
    if kind == pa.int64():
        whole = int(value)
        if not -(2**63) <= whole < 2**63:
            raise OverflowError(f"{value} is too large")
        return whole
    return value


def _read_embedding(body: Body) -> Reply:
    first = body.data[0] if body.data else None
    vector = first.get("embedding") if isinstance(first, dict) else None
    if isinstance(body.embedding, dict):
        vector = body.embedding.get("values")
    if isinstance(vector, str):
        try:
            vector = np.frombuffer(base64.b64decode(vector, validate=True), dtype="<f4").tolist()
        except (binascii.Error, ValueError) as error:
            return reply_with(body, "invalid", None, code="bad_embedding", message=f"not base64 of floats: {error}")
    if not isinstance(vector, list) or not vector:
        return reply_with(body, "invalid", None, code="bad_embedding", message="the response holds no embedding")
    if not all(isinstance(one, int | float) for one in vector) or not _finite(vector):
        return reply_with(body, "invalid", None, code="bad_embedding", message="the embedding holds more than numbers")
    return reply_with(body, "succeeded", vector)


def _finite(vector: list[Any]) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.asarray(vector, np.float32)).all())


def _read_moderation(body: Body) -> Reply:
    first = body.results[0] if body.results else None
    if not isinstance(first, dict):
        return reply_with(body, "invalid", None, code="no_answer", message="the response holds no result")
    flagged = bool(first.get("flagged"))
    categories = first.get("categories")
    names = sorted(name for name, hit in categories.items() if hit) if isinstance(categories, dict) else []
    return reply_with(body, "succeeded", "flagged" if flagged else "not flagged", (flagged, names))
