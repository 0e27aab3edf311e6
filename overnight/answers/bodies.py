"""Response bodies of the endpoints, and what stands in them: text, refusal, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from overnight.answers.verdicts import Reply, Verdict


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


class Body(msgspec.Struct):
    """The parts of a response body, of whichever endpoint, that columns are made of."""

    choices: list[_Choice] | None = None
    output: list[Any] | None = None
    data: list[Any] | None = None
    results: list[Any] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None
    incomplete_details: Any = None
    service_tier: Any = None


_decode_typed = msgspec.json.Decoder(Body).decode
_decode_lax = msgspec.json.Decoder(Body, strict=False).decode


def decode_body(body: bytes) -> Body:
    """Reads a body, of the usual types or of types that can be taken for them.

    Raises:
        msgspec.MsgspecError: it is no JSON object of this form.
    """
    try:
        return _decode_typed(body)
    except msgspec.ValidationError:
        return _decode_lax(body)


class Said(NamedTuple):
    """What a model said, and why it stopped."""

    text: str | None
    refusal: str | None
    finish_reason: str | None


def said_in(body: Body) -> Said:
    """The text of a chat completion, a completion, or a Responses body."""
    if body.choices:
        choice = body.choices[0]
        message = choice.message
        if message is None:
            return Said(choice.text, None, choice.finish_reason)
        text = message.content if isinstance(message.content, str) else _joined_parts(message.content)
        if text is None and message.tool_calls:
            text = msgspec.json.encode(message.tool_calls).decode()
        return Said(text, str(message.refusal) if message.refusal else None, choice.finish_reason)
    parts = [part for item in body.output or () if _is_message(item) for part in item.get("content") or ()]
    refusal = next((str(part["refusal"]) for part in parts if isinstance(part, dict) and part.get("refusal")), None)
    reason = body.incomplete_details.get("reason") if isinstance(body.incomplete_details, dict) else None
    return Said(_joined_parts(parts), refusal, reason or ("stop" if parts else None))


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and item.get("type", "message") == "message"


def _joined_parts(content: Any) -> str | None:
    if not isinstance(content, list):
        return None
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return "".join(texts) if texts else None


def reply_with(body: Body, verdict: Verdict, answer: Any, fields: Sequence[Any] = (), code: str | None = None,
           message: str | None = None) -> Reply:  # fmt: skip
    """A verdict with the tokens, model and finish reason that the body tells."""
    usage, tier = body.usage, body.service_tier if isinstance(body.service_tier, str) else None
    if usage is None:
        return Reply(verdict, answer, tuple(fields), _finish(body), code, message, body.model, service_tier=tier)
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
        tier,
    )


def _finish(body: Body) -> str | None:
    return body.choices[0].finish_reason if body.choices else said_in(body).finish_reason if body.output else None
