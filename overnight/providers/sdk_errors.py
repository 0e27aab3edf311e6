"""What the SDK raises, as errors of ours."""

from __future__ import annotations

from typing import Any

import httpx2
import openai

from overnight.errors import OvernightError, ProviderUnavailable
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


def whole_body(error: openai.APIStatusError) -> Any:
    """What an error reply holds; a short text where it is no JSON."""
    try:
        return error.response.json()
    except ValueError:
        return {"error": {"message": error_text(None, None, error.response.text)}}


def wanted_pause(error: openai.APIStatusError) -> float | None:
    """Seconds that a reply asks to wait (`Retry-After`); None where it does not, or names a date."""
    try:
        return max(0.0, float(error.response.headers.get("retry-after", "")))
    except ValueError:
        return None
