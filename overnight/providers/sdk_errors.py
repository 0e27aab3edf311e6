"""What the SDK raises, as errors of ours."""

from __future__ import annotations

import re
from typing import Any, Literal

import httpx2
import openai

from overnight.errors import OvernightError, ProviderError, ProviderUnavailable
from overnight.providers.replies import error_text, refusal


def translated(error: openai.OpenAIError, call: str, address: str) -> OvernightError:
    """An SDK error as one of ours; texts of replies are kept short."""
    if isinstance(error, openai.APIConnectionError):
        return ProviderUnavailable(f"cannot reach {address} ({call}): {cause_of(error)}")
    if not isinstance(error, openai.APIStatusError):
        return ProviderUnavailable(f"{call}: {type(error).__name__}")
    return refusal(error.status_code, error_text(error.body, error.code, error.message), call, address)


def cause_of(error: BaseException) -> str:
    """The innermost reason, without addresses' query strings."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".split("?")[0][:200]


def never_sent(error: openai.APIConnectionError) -> bool:
    """The connection was not even opened, so no batch can have been made."""
    cause = error.__cause__
    return isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def whole_body(error: openai.APIStatusError) -> dict[str, Any]:
    """What an error reply holds: Google puts it into a list; a text, or a page, becomes a message."""
    body = _json(error)
    if isinstance(body, list) and len(body) == 1:
        body = body[0]
    return body if isinstance(body, dict) else {"error": {"message": error_text(None, None, error.response.text)}}


def _json(error: openai.APIStatusError) -> Any:
    try:
        return error.response.json()
    except ValueError:
        return None


_ACCOUNT = re.compile(r"credit balance|billing|api[ _]key|quota|insufficient", re.IGNORECASE)
"""Of a 400 or 429 that every request of the account gets (Anthropic's balance, Gemini's key)."""
Standing = Literal["lost", "not taken", "account", "maybe all", "this one"]


def standing(error: openai.APIStatusError) -> Standing:
    """What an error reply to a request in real time says of it, and of others.

    A 5xx that the provider words itself is no answer, and costs none; one of a proxy before it says nothing of what was
    done behind it.
    """
    status, body = error.status_code, whole_body(error)
    inner = body["error"] if isinstance(body.get("error"), dict) else body
    said = error_text(inner, str(inner.get("code") or inner.get("type") or ""), "")
    worded = isinstance(_json(error), dict | list) and "error" in body
    if status in (408, 409, 502, 504) or (status >= 500 and not worded):
        return "lost"
    if status in (401, 402) or (status == 400 and _ACCOUNT.search(said)):
        return "account"
    if status == 429 and isinstance(refusal(status, said, "", ""), ProviderError):
        return "account"
    if status in (429, 503, 529):
        return "not taken"
    return "maybe all" if status in (403, 404, 405) else "this one"


def wanted_pause(error: openai.APIStatusError) -> float | None:
    """Seconds that a reply asks to wait (`Retry-After`); None where it does not, or names a date."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None
