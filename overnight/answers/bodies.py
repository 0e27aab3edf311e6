"""Response bodies of the endpoints, and what stands in them: text, calls, refusal, reasoning, tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from overnight.answers.lines import as_python_reads_it
from overnight.answers.verdicts import Reply, Verdict


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    prompt_tokens_details: Any = None
    input_tokens_details: Any = None
    completion_tokens_details: Any = None
    output_tokens_details: Any = None
    promptTokens: int | None = None  # noqa: N815 - the words of Gemini's lines in OpenAI's form
    totalTokens: int | None = None  # noqa: N815 - the same; with those of thinking, which are billed as output
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    """Anthropic's: beside the input tokens, where others count what was cached among them."""
    cache_creation: Any = None
    """Of them, for how long: `ephemeral_5m_input_tokens` and `ephemeral_1h_input_tokens`."""


_NOT_TOLD = _Usage()


class _Message(msgspec.Struct):
    content: Any = None
    refusal: Any = None
    tool_calls: Any = None
    reasoning_content: Any = None
    reasoning: Any = None


class Choice(msgspec.Struct):
    """One answer of a chat completion or a completion."""

    message: _Message | None = None
    text: str | None = None
    finish_reason: str | None = None
    logprobs: Any = None


class Body(msgspec.Struct):
    """The parts of a response body, of whichever endpoint, that columns are made of."""

    choices: list[Choice] | None = None
    output: list[Any] | None = None
    data: list[Any] | None = None
    results: list[Any] | None = None
    usage: _Usage | None = None
    model: str | None = None
    error: Any = None
    incomplete_details: Any = None
    content: Any = None
    stop_reason: str | None = None
    """Of a message of Anthropic's."""
    embedding: Any = None
    """Of an embedding of Gemini's: `{values}`."""
    tokenCount: int | None = None  # noqa: N815 - the words of the same
    service_tier: Any = None


_decode_typed = msgspec.json.Decoder(Body).decode
_decode_lax = msgspec.json.Decoder(Body, strict=False).decode


def decode_body(body: bytes) -> Body:
    """Reads a body, of the usual types or of types that can be taken for them, and as Python's json would.

    Raises:
        msgspec.MsgspecError: it is no JSON object of this form.
        UnicodeDecodeError: it is no text.
    """
    try:
        return _decode_typed(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _decode_liberally(body)


def _decode_liberally(body: bytes) -> Body:
    try:
        return _decode_lax(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        if (mended := as_python_reads_it(body)) is None:
            raise
        return _decode_lax(mended)


class Call(NamedTuple):
    """One call of a function."""

    name: str
    arguments: str
    """As JSON text."""


class Said(msgspec.Struct, frozen=True):
    """What a model said, and why it stopped."""

    text: str | None
    refusal: str | None
    finish_reason: str | None
    calls: tuple[Call, ...] = ()
    reasoning: str | None = None


def said_in(body: Body) -> Said:
    """The text of a chat completion, a completion, or a Responses body; where it has none, its calls as JSON text."""
    if body.choices:
        choice = body.choices[0]
        message = choice.message
        if message is None:
            return Said(choice.text, None, choice.finish_reason)
        text = message.content if isinstance(message.content, str) else _joined_parts(message.content)
        thoughts = message.reasoning_content or message.reasoning
        reasoning = thoughts if thoughts and isinstance(thoughts, str) else None
        refusal = str(message.refusal) if message.refusal else None
        if not message.tool_calls:
            return Said(text, refusal, choice.finish_reason, (), reasoning)
        calls = _calls(message.tool_calls)
        return Said(text or _as_text(message.tool_calls), refusal, choice.finish_reason, calls, reasoning)
    if body.stop_reason is not None or body.content is not None:
        return _said_in_message(body)
    items = [item for item in body.output or () if isinstance(item, dict)]
    parts = [part for item in items if item.get("type", "message") == "message" for part in item.get("content") or ()]
    refusal = next((str(part["refusal"]) for part in parts if isinstance(part, dict) and part.get("refusal")), None)
    reason = body.incomplete_details.get("reason") if isinstance(body.incomplete_details, dict) else None
    called = [item for item in items if item.get("type") in ("function_call", "custom_tool_call")]
    calls = _calls(called)
    thoughts = [part for item in items if item.get("type") == "reasoning"
                for part in (item.get("summary") or item.get("content") or ())]  # fmt: skip
    text = _joined_parts(parts)
    stop = reason or ("stop" if parts or calls else None)
    return Said(text or _as_text(called) or text, refusal, stop, calls, _joined_parts(thoughts, "\n\n"))


_STOPS = {
    "end_turn": "stop", "stop_sequence": "stop", "tool_use": "tool_calls", "max_tokens": "length",
    "model_context_window_exceeded": "length", "pause_turn": "length", "refusal": "content_filter",
}  # fmt: skip
"""Why a message of Anthropic's ended, in the words of a chat completion."""


def _said_in_message(body: Body) -> Said:
    blocks = [block for block in body.content or () if isinstance(block, dict)]
    used = [block for block in blocks if block.get("type") == "tool_use"]
    thoughts = [block["thinking"] for block in blocks if isinstance(block.get("thinking"), str)]
    text = _joined_parts([block for block in blocks if block.get("type") == "text"])
    refusal = (text or "refusal") if body.stop_reason == "refusal" else None
    return Said(text or _as_text(used), refusal, _finish(body), _calls(used), "\n\n".join(thoughts) or None)


def _calls(found: Any) -> tuple[Call, ...]:
    """Calls in the form of either endpoint."""
    calls = []
    for one in found if isinstance(found, list) else ():
        inner = one.get("function", one.get("custom", one)) if isinstance(one, dict) else None
        if not isinstance(inner, dict):
            continue
        given = inner.get("arguments", inner.get("input"))
        text = given if isinstance(given, str) else msgspec.json.encode(given if given is not None else {}).decode()
        calls.append(Call(str(inner.get("name") or ""), text))
    return tuple(calls)


def _as_text(calls: Any) -> str | None:
    """Calls as the provider words them."""
    return msgspec.json.encode(calls).decode() if calls else None


def _joined_parts(content: Any, between: str = "") -> str | None:
    if not isinstance(content, list):
        return None
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    return between.join(texts) if texts else None


def reply_with(body: Body, verdict: Verdict, answer: Any, fields: Sequence[Any] = (), code: str | None = None,
           message: str | None = None) -> Reply:  # fmt: skip
    """A verdict with the tokens, model and finish reason that the body tells."""
    tier = body.service_tier
    usage = body.usage or _NOT_TOLD
    given = usage.prompt_tokens_details or usage.input_tokens_details
    made = usage.completion_tokens_details or usage.output_tokens_details
    beside = [usage.cache_read_input_tokens, usage.cache_creation_input_tokens]
    hour = _count(usage.cache_creation, "ephemeral_1h_input_tokens") or 0
    return Reply(
        verdict,
        answer,
        tuple(fields),
        body.choices[0].finish_reason if body.choices else _finish(body),
        code,
        message,
        body.model,
        next(
            (one for one in (usage.prompt_tokens, _sum(usage.input_tokens, *beside)) if one is not None),
            usage.promptTokens if body.tokenCount is None else body.tokenCount,
        ),
        next((one for one in (usage.completion_tokens, usage.output_tokens) if one is not None), _rest(usage)),
        _count(given, "cached_tokens") if given else usage.cache_read_input_tokens,
        tier if isinstance(tier, str) else None,
        _count(made, "reasoning_tokens", "thinking_tokens") if made else None,
        written_tokens=max(0, (usage.cache_creation_input_tokens or 0) - hour),
        written_hour_tokens=hour,
    )


def _rest(usage: _Usage) -> int | None:
    """What was made, thinking too, where only the sum and the prompt are told (Gemini)."""
    if usage.totalTokens is None or usage.promptTokens is None:
        return None
    return usage.totalTokens - usage.promptTokens


def _sum(first: int | None, *others: int | None) -> int | None:
    """A count and what stands beside it; None where the first is not told."""
    return None if first is None else first + sum(one or 0 for one in others)


def _count(details: Any, *names: str) -> int | None:
    """A count under the first of some names that has one."""
    found = [details.get(name) for name in names] if isinstance(details, dict) else []
    return next((one for one in found if isinstance(one, int)), None)


def _finish(body: Body) -> str | None:
    if body.stop_reason is not None:
        return _STOPS.get(body.stop_reason, body.stop_reason)
    return said_in(body).finish_reason if body.output else None
