"""The Batch API's lines and words: request lines out, result lines in.

Result lines are read liberally (every deviation below was seen at a provider) and one at a time: a line that cannot be
read costs that line, and is still the answer to the request that it names: it was paid.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec


class ResultLine(msgspec.Struct, frozen=True):
    """One line of an output or error file."""

    custom_id: str
    status: int | None
    """HTTP status of the request; None where the provider gives none."""
    body: bytes | None
    """The response's body as JSON."""
    error_code: str | None
    error_message: str | None
    unreadable: str | None = None
    """Why nothing but its id can be read."""


class _Response(msgspec.Struct):
    body: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    status_code: int | None = None


class _Result(msgspec.Struct):
    custom_id: str
    response: _Response | None = None
    error: Any = None
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    """In place of both (Anthropic)."""


_decode_result = msgspec.json.Decoder(_Result).decode
_CUSTOM_ID = re.compile(rb'"custom_id"\s*:\s*"([^"\\]{1,256})"')


def read_result(line: bytes) -> ResultLine:
    """Reads one result line.

    Raises:
        ValueError: it is no JSON object with a custom_id.
    """
    try:
        result = _decode_result(line)
    except msgspec.ValidationError:
        return _read_loosely(line)
    except RecursionError as error:
        return _unreadable(line, error)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        mended = as_python_reads_it(line)
        return read_result(mended) if mended is not None else _unreadable(line, error)
    if result.result is not msgspec.UNSET and result.response is None and bytes(result.result) != b"null":
        return _told_result(result.custom_id, bytes(result.result))
    response = result.response
    if response is None or not (result.error is None or is_empty(result.error)):
        return _error_line(result)
    if response.body is msgspec.UNSET:
        return _read_loosely(line) if response.status_code is None else _success(result, None)
    return _success(result, bytes(response.body))


class _Told(msgspec.Struct):
    type: str
    message: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    error: Any = None


_decode_told = msgspec.json.Decoder(_Told).decode
_STATUS_OF = {
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402, "permission_error": 403,
    "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429, "api_error": 500,
    "timeout_error": 504, "overloaded_error": 529,
}  # fmt: skip
"""What Anthropic's types of errors are as HTTP statuses (its page on errors)."""


def _told_result(custom_id: str, result: bytes) -> ResultLine:
    """A `result` of Anthropic's: a message, an error, or why there is neither."""
    try:
        told = _decode_told(result)
    except msgspec.ValidationError as wrong:
        return ResultLine(custom_id, None, None, None, None, str(wrong))
    if told.type == "succeeded" and told.message is not msgspec.UNSET:
        return ResultLine(custom_id, 200, bytes(told.message), None, None)
    if told.type in ("canceled", "expired"):
        return ResultLine(custom_id, None, None, f"batch_{told.type.replace('canceled', 'cancelled')}", None)
    error = told.error if isinstance(told.error, dict) else {}
    inner = error["error"] if isinstance(error.get("error"), dict) else error
    code, message = inner.get("type"), inner.get("message")
    status = _STATUS_OF.get(str(code))
    return ResultLine(custom_id, status, None, str(code or told.type), str(message) if message else None)


def _unreadable(line: bytes, error: Exception) -> ResultLine:
    """A line of which only the id can be read.

    Raises:
        ValueError: not even that; or it ends early, as a file that was cut does: it says nothing of what was made.
    """
    if (named := _CUSTOM_ID.search(line)) is None or "truncated" in str(error):
        raise ValueError(f"not JSON: {error}") from None
    return ResultLine(named[1].decode(errors="replace"), None, None, None, None, str(error))


def as_python_reads_it(line: bytes) -> bytes | None:
    """A line that Python's json reads and JSON does not know, as JSON; None: it is the same, or no JSON at all.

    Halves of surrogate pairs, which models cut in the middle of an emoji leave; `NaN` and `Infinity`, which
    Python servers write (they become null); bytes that are not UTF-8.
    """
    try:
        read = json.loads(line.decode(errors="replace"), parse_constant=_no_number)
        mended = json.dumps(read, ensure_ascii=False).encode(errors="replace")
    except (ValueError, RecursionError):
        return None
    return mended if mended != line.rstrip(b"\n") else None


def _no_number(_name: str) -> None:
    return None


def is_empty(error: Any) -> bool:
    """Whether an error says nothing, in any of the shapes that stand beside an answer: `{}`, `""`, `{"code": null}`."""
    if error is None:
        return True
    if isinstance(error, dict):
        return all(is_empty(part) for part in error.values())
    return error in ("", False) or error == []


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


def _renamed(line: dict[str, Any]) -> dict[str, Any]:
    """A line whose fields have other names: `key` (Gemini), `batch_request_id` and `batch_result` (xAI)."""
    if "key" in line:
        return line | {"custom_id": line["key"]}
    result = line.get("batch_result")
    if "batch_request_id" not in line or not isinstance(result, dict):
        return line
    response = result.get("response")  # an object with one field, which is named after the endpoint
    body = next(iter(response.values()), None) if isinstance(response, dict) else None
    return {"custom_id": line["batch_request_id"], "response": body, "error": result.get("error")}


def _read_loosely(line: bytes) -> ResultLine:
    """Lines whose fields have unusual types, the body directly under `response` (Nebius), or other names."""
    try:
        loose = msgspec.json.decode(line)
    except RecursionError as error:
        return _unreadable(line, error)
    if isinstance(loose, dict) and "custom_id" not in loose:
        loose = _renamed(loose)
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
    return _success(typed, encoded) if is_empty(typed.error) else _error_line(typed)
