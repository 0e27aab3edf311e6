"""How each kind of answer is read out of a result line, and judged."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jsonschema_rs
import msgspec
import pyarrow as pa

from overnight.answers.bodies import Body, decode_body, reply_with, said_in
from overnight.answers.lines import ResultLine
from overnight.answers.verdicts import Reply, failure, http_failure
from overnight.job.answer import Answer
from overnight.job.schema import Column

_CUT = frozenset({"length", "max_tokens", "max_output_tokens"})


def answer_reader(answer: Answer) -> Callable[[ResultLine], Reply]:
    """A function that understands the result lines of a task; it holds the compiled schema, which cannot be pickled."""
    judge = _judge(answer)

    def read(line: ResultLine) -> Reply:
        if line.error_code is not None:
            return failure(line.status, line.error_code, line.error_message)
        if line.body is None or not 200 <= (line.status if line.status is not None else 200) < 300:
            return http_failure(line)
        try:
            body = decode_body(line.body)
        except msgspec.MsgspecError as error:
            return Reply("invalid", error_code="unreadable_body", error_message=str(error))
        return http_failure(line) if body.error else judge(body)

    return read


def _judge(answer: Answer) -> Callable[[Body], Reply]:
    match answer.kind:
        case "embedding":
            return _read_embedding
        case "moderation":
            return _read_moderation
        case "label":
            return _label_reader(answer.labels, structured=answer.schema is not None)
        case "json":
            return _json_reader(dict(answer.schema or {}), answer.columns)
        case "raw":
            return lambda body: reply_with(body, "succeeded", said_in(body).text)
        case "text":
            return lambda body: _common(body) or reply_with(body, "succeeded", said_in(body).text)


def _common(body: Body) -> Reply | None:
    """The verdict that holds for any generated answer: refused, cut, or empty. None: there is an answer to judge."""
    said = said_in(body)
    if said.refusal or said.finish_reason == "content_filter":
        return reply_with(body, "refused", said.text, code="refusal", message=said.refusal or "content filter")
    if said.finish_reason in _CUT and body.choices and body.choices[0].message is None:
        return None  # a plain completion goes on until it is stopped
    if said.finish_reason in _CUT:
        return reply_with(body, "invalid", said.text, code="cut", message="the answer was cut by its token limit")
    if said.text is None:
        return reply_with(body, "invalid", None, code="no_answer", message="the response holds no text")
    return None


def _label_reader(labels: tuple[str, ...], *, structured: bool) -> Callable[[Body], Reply]:
    forms = Counter(_plain(label) for label in labels)
    known = {_plain(label): label for label in labels if forms[_plain(label)] == 1}
    known |= {label: label for label in labels}

    def judge(body: Body) -> Reply:
        if (common := _common(body)) is not None:
            return common
        text = said_in(body).text or ""
        label = _structured_label(text) if structured else text
        if (found := known.get(label.strip()) or known.get(_plain(label))) is not None:
            return reply_with(body, "succeeded", found)
        return reply_with(body, "invalid", text, code="unknown_label", message=f"not one of {', '.join(labels)}")

    return judge


def _structured_label(text: str) -> str:
    try:
        value = msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text
    return str(next(iter(value.values()), "")) if isinstance(value, dict) else str(value)


def _plain(label: str) -> str:
    """A label as models vary it: case, spaces, quotes, a full stop."""
    return re.sub(r"[\W_]+", " ", label.casefold()).strip() or label


def _json_reader(schema: dict[str, Any], columns: tuple[Column, ...]) -> Callable[[Body], Reply]:
    validator = jsonschema_rs.validator_for(schema)

    def judge(body: Body) -> Reply:
        if (common := _common(body)) is not None:
            return common
        text = said_in(body).text or ""
        try:
            value = msgspec.json.decode(_unfenced(text))
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
        return reply_with(body, "succeeded", text, cells)

    return judge


def _unfenced(text: str) -> str:
    """JSON out of a Markdown code fence, as models without a JSON mode give it."""
    fenced = re.fullmatch(r"\s*```(?:json)?\s*(.*?)\s*```\s*", text, re.DOTALL)
    return fenced[1] if fenced else text


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
    if not isinstance(vector, list) or not vector or not all(isinstance(one, int | float) for one in vector):
        return reply_with(body, "invalid", None, code="no_answer", message="the response holds no embedding as a list")
    return reply_with(body, "succeeded", vector)


def _read_moderation(body: Body) -> Reply:
    first = body.results[0] if body.results else None
    if not isinstance(first, dict):
        return reply_with(body, "invalid", None, code="no_answer", message="the response holds no result")
    flagged = bool(first.get("flagged"))
    categories = first.get("categories")
    names = sorted(name for name, hit in categories.items() if hit) if isinstance(categories, dict) else []
    return reply_with(body, "succeeded", "flagged" if flagged else "not flagged", (flagged, names))
