"""What a response says: its text, its tokens, and the verdict on it.

A verdict is one of `VERDICTS`. `succeeded`, `failed`, `refused` and `invalid` are final for an attempt's request;
`retryable`, `expired` and `missing` may be asked again.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jsonschema_rs
import msgspec
import pyarrow as pa

from overnight.schema import Column, columns_of
from overnight.wire import ResultLine

Verdict = Literal["succeeded", "refused", "invalid", "failed", "retryable", "expired", "missing"]
VERDICTS: tuple[Verdict, ...] = ("succeeded", "refused", "invalid", "failed", "retryable", "expired", "missing")
"""Best first: where a custom_id has several lines or attempts, the best stands."""
SETTLED: frozenset[Verdict] = frozenset({"succeeded", "refused", "invalid", "failed"})
"""Verdicts whose request is not sent again: the answer is there, or would be the same."""
STATUSES = ("succeeded", "failed", "refused", "invalid", "expired", "missing")
"""What `status` in the joined table can be; a `retryable` verdict after the last attempt is `failed`."""

_RETRYABLE_STATUS = frozenset({0, 408, 409, 429})
_CUT = frozenset({"length", "max_tokens", "max_output_tokens"})
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


class Reply(NamedTuple):
    """One result line, understood. Token counts are the provider's; None where it gives none."""

    verdict: Verdict
    answer: Any = None
    """Text; a list of floats for embeddings."""
    fields: tuple[Any, ...] = ()
    """The values of the answer's columns, in their order; empty where there are none."""
    finish_reason: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    model: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """What kind of answer a task asks for."""

    kind: Literal["text", "json", "label", "embedding", "moderation", "raw"]
    schema: Mapping[str, Any] | None = None
    labels: tuple[str, ...] = ()
    columns: tuple[Column, ...] = ()

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
    def raw() -> Answer:
        """Whatever the body holds: nothing is known of what was asked for."""
        return Answer("raw")

    @property
    def type(self) -> pa.DataType:
        """The Arrow type of the `answer` column."""
        return pa.list_(pa.float32()) if self.kind == "embedding" else pa.string()

    def reader(self) -> Callable[[ResultLine], Reply]:
        """A function that understands result lines; it holds the compiled schema, which cannot be pickled."""
        judge = self._judge()

        def read(line: ResultLine) -> Reply:
            if line.error_code is not None:
                return _failure(line.status, line.error_code, line.error_message)
            if line.body is None or not 200 <= (line.status if line.status is not None else 200) < 300:
                return _http_failure(line)
            try:
                body = _decode_body(line.body)
            except msgspec.MsgspecError as error:
                return Reply("invalid", error_code="unreadable_body", error_message=str(error))
            return _http_failure(line) if body.error else judge(body)

        return read

    def _judge(self) -> Callable[[_Body], Reply]:
        match self.kind:
            case "embedding":
                return _read_embedding
            case "moderation":
                return _read_moderation
            case "label":
                return _label_reader(self.labels, structured=self.schema is not None)
            case "json":
                return _json_reader(dict(self.schema or {}), self.columns)
            case "raw":
                return lambda body: _reply(body, "succeeded", _said(body).text)
            case "text":
                return lambda body: _common(body) or _reply(body, "succeeded", _said(body).text)


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: Any = None
    input_tokens_details: Any = None


class _Message(msgspec.Struct):
    content: Any = None
    refusal: Any = None
    tool_calls: Any = None


class _Choice(msgspec.Struct):
    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None


class _Body(msgspec.Struct):
    """The parts of a response body, of whichever endpoint, that columns are made of."""

    choices: list[_Choice] | None = None
    output: list[Any] | None = None
    data: list[Any] | None = None
    results: list[Any] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None
    incomplete_details: Any = None


_decode_typed = msgspec.json.Decoder(_Body).decode
_decode_lax = msgspec.json.Decoder(_Body, strict=False).decode


def _decode_body(body: bytes) -> _Body:
    try:
        return _decode_typed(body)
    except msgspec.ValidationError:
        return _decode_lax(body)


class _Said(NamedTuple):
    text: str | None
    refusal: str | None
    finish_reason: str | None


def _said(body: _Body) -> _Said:
    """The text of a chat completion, a completion, or a Responses body."""
    if body.choices:
        choice = body.choices[0]
        message = choice.message
        if message is None:
            return _Said(choice.text, None, choice.finish_reason)
        text = message.content if isinstance(message.content, str) else _joined_parts(message.content)
        if text is None and message.tool_calls:
            text = msgspec.json.encode(message.tool_calls).decode()
        return _Said(text, str(message.refusal) if message.refusal else None, choice.finish_reason)
    parts = [part for item in body.output or () if _is_message(item) for part in item.get("content") or ()]
    refusal = next((str(part["refusal"]) for part in parts if isinstance(part, dict) and part.get("refusal")), None)
    reason = body.incomplete_details.get("reason") if isinstance(body.incomplete_details, dict) else None
    return _Said(_joined_parts(parts), refusal, reason or ("stop" if parts else None))


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type", "message") == "message"


def _joined_parts(content: Any) -> str | None:
    if not isinstance(content, list):
        return None
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if texts else None


def _reply(body: _Body, verdict: Verdict, answer: Any, fields: Sequence[Any] = (), code: str | None = None,
           message: str | None = None) -> Reply:  # fmt: skip
    usage = body.usage
    if usage is None:
        return Reply(verdict, answer, tuple(fields), _finish(body), code, message, body.model)
    details = usage.prompt_tokens_details or usage.input_tokens_details
    cached = details.get("cached_tokens") if isinstance(details, dict) else None
    return Reply(
        verdict,
        answer,
        tuple(fields),
        _finish(body),
        code,
        message,
        body.model,
        usage.prompt_tokens if usage.prompt_tokens is not None else usage.input_tokens,
        usage.completion_tokens if usage.completion_tokens is not None else usage.output_tokens,
        cached if isinstance(cached, int) else None,
    )


def _finish(body: _Body) -> str | None:
    return body.choices[0].finish_reason if body.choices else _said(body).finish_reason if body.output else None


def _common(body: _Body) -> Reply | None:
    """The verdict that holds for any generated answer: refused, cut, or empty. None: there is an answer to judge."""
    said = _said(body)
    if said.refusal or said.finish_reason == "content_filter":
        return _reply(body, "refused", said.text, code="refusal", message=said.refusal or "content filter")
    if said.finish_reason in _CUT and body.choices and body.choices[0].message is None:
        return None  # a plain completion goes on until it is stopped
    if said.finish_reason in _CUT:
        return _reply(body, "invalid", said.text, code="cut", message="the answer was cut by its token limit")
    if said.text is None:
        return _reply(body, "invalid", None, code="no_answer", message="the response holds no text")
    return None


def _label_reader(labels: tuple[str, ...], *, structured: bool) -> Callable[[_Body], Reply]:
    forms = Counter(_plain(label) for label in labels)
    known = {_plain(label): label for label in labels if forms[_plain(label)] == 1}
    known |= {label: label for label in labels}

    def judge(body: _Body) -> Reply:
        if (common := _common(body)) is not None:
            return common
        text = _said(body).text or ""
        label = _structured_label(text) if structured else text
        if (found := known.get(label.strip()) or known.get(_plain(label))) is not None:
            return _reply(body, "succeeded", found)
        return _reply(body, "invalid", text, code="unknown_label", message=f"not one of {', '.join(labels)}")

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


def _json_reader(schema: dict[str, Any], columns: tuple[Column, ...]) -> Callable[[_Body], Reply]:
    validator = jsonschema_rs.validator_for(schema)

    def judge(body: _Body) -> Reply:
        if (common := _common(body)) is not None:
            return common
        text = _said(body).text or ""
        try:
            value = msgspec.json.decode(_unfenced(text))
        except msgspec.DecodeError as error:
            return _reply(body, "invalid", text, code="invalid_json", message=str(error))
        if (wrong := next(validator.iter_errors(value), None)) is not None:
            where = "/".join(str(part) for part in wrong.instance_path) or "the answer"
            return _reply(body, "invalid", text, code="schema_violation", message=f"{where}: {wrong.message}")
        try:
            cells = [_cell(value.get(column.name), column) for column in columns]
        except (OverflowError, ValueError, TypeError) as error:
            return _reply(body, "invalid", text, code="schema_violation", message=f"does not fit its column: {error}")
        return _reply(body, "succeeded", text, cells)

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


def _read_embedding(body: _Body) -> Reply:
    first = body.data[0] if body.data else None
    vector = first.get("embedding") if isinstance(first, dict) else None
    if not isinstance(vector, list) or not vector or not all(isinstance(one, int | float) for one in vector):
        return _reply(body, "invalid", None, code="no_answer", message="the response holds no embedding as a list")
    return _reply(body, "succeeded", vector)


def _read_moderation(body: _Body) -> Reply:
    first = body.results[0] if body.results else None
    if not isinstance(first, dict):
        return _reply(body, "invalid", None, code="no_answer", message="the response holds no result")
    flagged = bool(first.get("flagged"))
    categories = first.get("categories")
    names = sorted(name for name, hit in categories.items() if hit) if isinstance(categories, dict) else []
    return _reply(body, "succeeded", "flagged" if flagged else "not flagged", (flagged, names))


def _http_failure(line: ResultLine) -> Reply:
    """A response with an error status, or a 200 whose body is an error."""
    error: Any = None
    try:
        parsed = msgspec.json.decode(line.body) if line.body else None
        error = parsed.get("error", parsed) if isinstance(parsed, dict) else parsed
    except msgspec.DecodeError:
        error = None
    known = error if isinstance(error, dict) else {"message": error}
    code = known.get("code") or known.get("type")
    message = known.get("message")
    return _failure(line.status, str(code) if code else None, str(message) if message else None)


def _failure(status: int | None, code: str | None, message: str | None) -> Reply:
    name = code or (f"http_{status}" if status is not None else "no_response")
    return Reply(failure_verdict(status, name), error_code=name, error_message=message)


def failure_verdict(status: int | None, code: str) -> Verdict:
    """Whether a failed request may be sent again.

    Args:
        status: HTTP status of the request; None or 0 where it never got one.
        code: the provider's error code.
    """
    if code in ("batch_expired", "batch_cancelled"):
        return "expired"
    if status is not None and 400 <= status < 500 and status not in _RETRYABLE_STATUS:
        return "failed"
    return "failed" if status is None and code.startswith("invalid") else "retryable"
