"""The lines of batch files: reading the input's, shaping the output's and the error file's.

The shapes are those of OpenAI's Batch API (https://platform.openai.com/docs/api-reference/batch/request-output). Bodies
pass through as the upstream wrote them, byte for byte but for line breaks between tokens.
"""

import contextlib
import random
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, Final, NamedTuple

import msgspec

from overnight.endpoint.storage.foreign_json import UNREADABLE, whole_text

MAX_LINE_BYTES: Final = 16 * 1024 * 1024
MAX_TOKENS: Final = 1 << 40
"""More than any answer uses; the sum over MAX_REQUESTS lines of it still fits SQLite's 64 bits."""
_FIRST_PAIR: Final = re.compile(rb'\s*\{\s*"custom_id"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")')


class NumberedLine(NamedTuple):
    """A line that is not blank, with its 1-based number in the file.

    `data` is cut at one byte over MAX_LINE_BYTES: a longer line is not a request, whatever it holds.
    """

    number: int
    data: bytes


def input_lines(stream: BinaryIO) -> Iterator[NumberedLine]:
    """Yield the lines of an input file that are not blank, holding one at a time in memory."""
    number = 0
    while data := stream.readline(MAX_LINE_BYTES + 1):
        number += 1
        if len(data) > MAX_LINE_BYTES and not data.endswith(b"\n"):
            _skip_rest_of_line(stream)
        if data.strip():
            yield NumberedLine(number, data)


def _skip_rest_of_line(stream: BinaryIO) -> None:
    while (rest := stream.readline(1 << 20)) and not rest.endswith(b"\n"):
        pass


class RequestLine(msgspec.Struct, frozen=True):
    """A validated input line; `body` stays as the client wrote it."""

    custom_id: str
    url: str
    body: msgspec.Raw


request_decoder: Final = msgspec.json.Decoder(RequestLine)


def custom_id_of(data: bytes) -> str:
    """Return a line's custom_id; of a line that cannot be read its first pair if it is that, else an empty text."""
    with contextlib.suppress(*UNREADABLE):
        return request_decoder.decode(data).custom_id
    first = _FIRST_PAIR.match(data)
    with contextlib.suppress(*UNREADABLE):
        return msgspec.json.decode(first[1], type=str) if first else ""
    return ""


class Answer(NamedTuple):
    """What an upstream answered over HTTP; `body` is valid JSON."""

    status_code: int
    body: bytes
    request_id: str


class Failure(NamedTuple):
    """Why a line has no HTTP answer.

    `code` is batch_expired, batch_cancelled, request_timeout, upstream_error, or server_error for a fault in here.
    """

    code: str
    message: str


EXPIRED: Final = Failure("batch_expired", "This request could not be executed before the completion window expired.")
CANCELLED: Final = Failure("batch_cancelled", "This request was not executed because the batch was cancelled.")


class Usage(NamedTuple):
    """Tokens of one answer, or the sum over a batch."""

    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0


class ResultLine(NamedTuple):
    """A finished line: which file it belongs to, its JSON without a line break, and what it used."""

    succeeded: bool
    data: bytes
    usage: Usage


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: msgspec.Raw


class _Error(msgspec.Struct):
    code: str
    message: str


class _Line(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _Error | None


def result_line(custom_id: str, outcome: Answer | Failure) -> ResultLine:
    """Return the line that reports an outcome.

    An answer with a status of 400 or more is a failed line with its response kept and `error` null; a line without an
    answer has `response` null and `error` set.
    """
    line_id = f"batch_req_{random.getrandbits(128):032x}"
    if isinstance(outcome, Failure):
        failed = _Line(line_id, custom_id, None, _Error(outcome.code, whole_text(outcome.message)))
        return ResultLine(False, msgspec.json.encode(failed), Usage())
    response = _Response(outcome.status_code, outcome.request_id, msgspec.Raw(one_line(outcome.body)))
    succeeded = 200 <= outcome.status_code < 300
    usage = usage_of(outcome.body) if succeeded else Usage()
    return ResultLine(succeeded, msgspec.json.encode(_Line(line_id, custom_id, response, None)), usage)


def one_line(body: bytes) -> bytes:
    """Take the line breaks out of valid JSON, where they can only stand between tokens."""
    return body.replace(b"\r", b"").replace(b"\n", b"").strip()


class _HasUsage(msgspec.Struct):
    usage: Any = None


_usage_decoder: Final = msgspec.json.Decoder(_HasUsage)


def usage_of(body: bytes) -> Usage:
    """Read the tokens of an answer in the words of chat, completions and embeddings, or of responses."""
    try:
        usage = _usage_decoder.decode(body).usage
    except UNREADABLE:
        return Usage()
    if not isinstance(usage, dict):
        return Usage()
    read = _count(usage, "input_tokens", "prompt_tokens")
    written = _count(usage, "output_tokens", "completion_tokens")
    return Usage(
        input_tokens=read,
        cached_tokens=_count(_detail(usage, "input_tokens_details", "prompt_tokens_details"), "cached_tokens"),
        output_tokens=written,
        reasoning_tokens=_count(
            _detail(usage, "output_tokens_details", "completion_tokens_details"), "reasoning_tokens"
        ),
        total_tokens=_count(usage, "total_tokens") or read + written,
    )


def _count(source: dict[str, Any], *names: str) -> int:
    values = (source.get(name) for name in names)
    return next((v for v in values if type(v) is int and 0 <= v <= MAX_TOKENS), 0)


def _detail(usage: dict[str, Any], *names: str) -> dict[str, Any]:
    return next((usage[name] for name in names if isinstance(usage.get(name), dict)), {})
