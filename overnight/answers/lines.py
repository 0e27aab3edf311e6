"""The Batch API's lines and words: request lines out, result lines in.

Result lines are read liberally (every deviation below was seen at a provider) and one at a time: a line that cannot be
read costs that line.
"""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

import msgspec


class ResultLine(NamedTuple):
    """One line of an output or error file."""

    custom_id: str
    status: int | None
    """HTTP status of the request; None where the provider gives none."""
    body: bytes | None
    """The response's body as JSON."""
    error_code: str | None
    error_message: str | None


class _Response(msgspec.Struct):
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    status_code: int | None = None


class _Result(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None


_decode_result = msgspec.json.Decoder(_Result).decode


def read_result(line: bytes) -> ResultLine:
    """Reads one result line.

    Raises:
        ValueError: it is no JSON object with a custom_id.
    """
    try:
        result = _decode_result(line)
    except msgspec.ValidationError:
        return _read_loosely(line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if (mended := _without_surrogates(line)) is None:
            raise ValueError(f"not JSON: {error}") from None
        return read_result(mended)
    response = result.response
    if result.error is not None or response is None:
        return _error_line(result)
    if response.body is msgspec.UNSET:
        return _read_loosely(line) if response.status_code is None else _success(result, None)
    return _success(result, bytes(response.body))


def _without_surrogates(line: bytes) -> bytes | None:
    """The line without halves of surrogate pairs, which models cut in the middle of an emoji leave; None: no JSON."""
    if b"\\ud" not in line.lower():
        return None
    try:
        mended = json.dumps(json.loads(line), ensure_ascii=False, allow_nan=False).encode(errors="replace")
    except (ValueError, RecursionError):
        return None
    return mended if mended != line else None


def _success(result: _Result, body: bytes | None) -> ResultLine:
    status = result.response.status_code if result.response else None
    if body is not None and body.startswith(b'"'):  # OGX sends the body as a JSON string
        body = msgspec.json.decode(body, type=str).encode()
    return ResultLine(result.custom_id, status, body, None, None)


def _error_line(result: _Result) -> ResultLine:
    """An error object in any of its shapes: with a code, with a type, as bare text, or missing altogether."""
    error = result.error
    known: dict[str, Any] = error if isinstance(error, dict) else {"message": error}
    code = known.get("code") or known.get("type")
    code = str(code) if code is not None else None
    status = result.response.status_code if result.response else None
    if status is None and code and re.fullmatch(r"[1-5]\d\d", code):  # DeepInfra gives the status as the code
        status = int(code)
    body = result.response.body if result.response else None
    message = known.get("message")
    return ResultLine(
        result.custom_id,
        status,
        bytes(body) if isinstance(body, msgspec.Raw) else None,
        code or "no_response",
        str(message) if message is not None else None,
    )


def _read_loosely(line: bytes) -> ResultLine:
    """Lines whose fields have unusual types, or the completion directly under `response` (Nebius)."""
    loose = msgspec.json.decode(line)
    if not isinstance(loose, dict) or not isinstance(loose.get("custom_id"), str):
        raise ValueError("no object with a custom_id")  # noqa: TRY004 - a line's fault, not a caller's
    response = loose.get("response")
    if not isinstance(response, dict):
        return _error_line(_Result(loose["custom_id"], None, loose.get("error") or response))
    status = response.get("status_code")
    if "body" not in response:
        body, status = response, status if status is not None else 200
    else:
        body = response["body"]
    number = int(str(status).split(".")[0]) if str(status)[:1].isdigit() else None
    encoded = body.encode() if isinstance(body, str) else msgspec.json.encode(body)
    typed = _Result(loose["custom_id"], _Response(msgspec.Raw(encoded), number), loose.get("error"))
    return _error_line(typed) if typed.error is not None else _success(typed, encoded)
