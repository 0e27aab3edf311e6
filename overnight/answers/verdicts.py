"""The verdict on a request: what its answer, or the lack of one, comes to.

A verdict is one of `VERDICTS`. `succeeded`, `failed`, `refused` and `invalid` are final for an attempt's request;
`retryable`, `expired` and `missing` may be asked again.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from overnight.answers.lines import ResultLine

Verdict = Literal["succeeded", "refused", "invalid", "failed", "retryable", "expired", "missing"]
VERDICTS: tuple[Verdict, ...] = ("succeeded", "refused", "invalid", "failed", "retryable", "expired", "missing")
"""Best first: where a custom_id has several lines or attempts, the best stands."""
SETTLED: frozenset[Verdict] = frozenset({"succeeded", "refused", "invalid", "failed"})
"""Verdicts whose request is not sent again: the answer is there, or would be the same."""

PROMPT_FILTERED: frozenset[str] = frozenset({
    "content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation", "data_inspection_failed",
    "DataInspectionFailed",
})  # fmt: skip
"""Codes of providers that will not look at a prompt (Azure OpenAI's and DashScope's references): nothing is made."""
REPLY_LOST = "reply_lost"
"""The code of a request that was asked in real time, and whose reply was lost."""
MAYBE_PAID: frozenset[str] = frozenset({"batch_lost", REPLY_LOST})
"""Codes of requests that may have been answered and paid: only a person can say that paying twice is fine."""
_RETRYABLE_STATUS = frozenset({0, 408, 409, 429})


class Reply(msgspec.Struct, frozen=True):
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
    service_tier: str | None = None
    reasoning_tokens: int | None = None
    reasoning: str | None = None
    """What the model thought, where the provider tells."""
    logprob: float | None = None
    """Mean over the answer's tokens, where they were asked for."""
    probability: float | None = None
    """Of the label, from the same."""
    written_tokens: int = 0
    """Input tokens that the provider wrote to a cache for minutes, which cost more (Anthropic)."""
    written_hour_tokens: int = 0
    """The same of a cache for an hour."""
    answers: tuple[str | None, ...] | None = None
    """All answers of a request that asks for several; None at the place of one that is not valid."""


def http_failure(line: ResultLine) -> Reply:
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
    return failure(line.status, str(code) if code else None, str(message) if message else None)


def failure(status: int | None, code: str | None, message: str | None) -> Reply:
    """A request without an answer, as the provider words it."""
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
    if code == REPLY_LOST:
        return "missing"
    if code in PROMPT_FILTERED:
        return "refused"
    if status is not None and 400 <= status < 500 and status not in _RETRYABLE_STATUS:
        return "failed"
    return "failed" if status is None and code.startswith("invalid") else "retryable"
