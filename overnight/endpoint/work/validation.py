"""Whole-file validation before any work, as OpenAI does it: a stream in, problems with code and line out.

Codes are those seen in OpenAI's `errors.data`; where OpenAI publishes none (too many lines, a file too large, a wrong
method), Azure OpenAI's or a plain name is used.
"""

import codecs
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, BinaryIO, Final, NamedTuple

from overnight.endpoint.storage.foreign_json import TooDeepError, read_json
from overnight.endpoint.storage.lines import MAX_LINE_BYTES, NumberedLine, input_lines

MAX_REQUESTS: Final = 50_000
MAX_FILE_BYTES: Final = 200 * 1024 * 1024
MAX_PROBLEMS: Final = 100


class Problem(NamedTuple):
    """One entry of a failed batch's `errors.data`; `line` is 1-based, None where the whole file is meant."""

    code: str
    message: str
    param: str | None = None
    line: int | None = None


@dataclass(frozen=True)
class Rules:
    """What the lines of one batch must agree with."""

    endpoint: str
    """The path that every line's `url` must name, such as `/v1/chat/completions`."""

    models: frozenset[str] | None = None
    """Models that are served; None where only the upstream knows."""


@dataclass(frozen=True)
class Verdict:
    """The outcome for a file: valid when `problems` is empty (at most MAX_PROBLEMS are listed, in file order)."""

    requests: int
    model: str | None
    problems: tuple[Problem, ...]


class _Request(NamedTuple):
    custom_id: str
    model: str


def validate(stream: BinaryIO, size: int, rules: Rules) -> Verdict:
    """Check a whole input file of `size` bytes, holding one line and a digest per custom_id in memory."""
    if size > MAX_FILE_BYTES:
        message = f"The file has {size} bytes; the limit for a batch is {MAX_FILE_BYTES}. Split it."
        return Verdict(0, None, (Problem("file_too_large", message, "input_file_id"),))
    requests, model, problems = 0, None, []
    seen: dict[bytes, int] = {}
    for line in input_lines(stream):
        requests += 1
        if requests > MAX_REQUESTS:
            message = f"The file has more than {MAX_REQUESTS} requests. Split it."
            problems.append(Problem("too_many_tasks", message, "input_file_id", line.number))
            break
        found = check_line(line, rules)
        if isinstance(found, _Request):
            model = model or found.model
            problem = _check_against_earlier(found, line.number, model, seen)
        else:
            problem = found
        if problem:
            problems.append(problem)
        if len(problems) == MAX_PROBLEMS:
            break
    if requests == 0:
        problems.append(Problem("empty_file", "The file has no requests.", "input_file_id"))
    return Verdict(requests, model, tuple(problems))


def _check_against_earlier(request: _Request, number: int, model: str, seen: dict[bytes, int]) -> Problem | None:
    digest = blake2b(request.custom_id.encode(errors="surrogatepass"), digest_size=16).digest()
    first = seen.setdefault(digest, number)
    if first != number:
        message = f"The custom_id {_shown(request.custom_id)} is already used on line {first}."
        return Problem("duplicate_custom_id", message, "custom_id", number)
    if request.model != model:
        message = f"The model {_shown(request.model)} differs from {_shown(model)}, the model of the first request."
        return Problem("mismatched_model", message, "body.model", number)
    return None


def check_line(line: NumberedLine, rules: Rules) -> _Request | Problem:
    """Check one line by itself: return what later lines are compared with, or the first problem."""
    if len(line.data) > MAX_LINE_BYTES:
        return Problem("invalid_request", f"The line is longer than {MAX_LINE_BYTES} bytes.", None, line.number)
    parsed = _parse(line)
    if isinstance(parsed, Problem):
        return parsed
    return _check_keys(parsed, rules, line.number) or _check_body(parsed, rules, line.number)


def _parse(line: NumberedLine) -> dict[str, Any] | Problem:
    if line.data.startswith(codecs.BOM_UTF8):
        message = "The line starts with a byte order mark. Save the file as UTF-8 without BOM."
        return Problem("invalid_json_line", message, None, line.number)
    try:
        value = read_json(line.data)
    except TooDeepError as error:
        return Problem("invalid_json_line", f"This line is {error}. Flatten it.", None, line.number)
    except ValueError as error:
        message = f"This line is not parseable as valid JSON: {error}"
        return Problem("invalid_json_line", message, None, line.number)
    if not isinstance(value, dict):
        return Problem("invalid_json_line", "This line is not a JSON object.", None, line.number)
    return value


def _check_keys(request: dict[str, Any], rules: Rules, line: int) -> Problem | None:
    for key in ("custom_id", "method", "url", "body"):
        if request.get(key) in (None, ""):
            return Problem("missing_required_parameter", f"Missing required parameter: '{key}'.", key, line)
    for key, kind, name in (("custom_id", str, "a string"), ("url", str, "a string"), ("body", dict, "an object")):
        if not isinstance(request[key], kind):
            return Problem("invalid_request", f"'{key}' must be {name}.", key, line)
    if request["method"] != "POST":
        return Problem("invalid_method", f"The method {_shown(request['method'])} must be 'POST'.", "method", line)
    if request["url"] != rules.endpoint:
        message = f"The url {_shown(request['url'])} does not match the batch's endpoint '{rules.endpoint}'."
        return Problem("invalid_url", message, "url", line)
    return None


def _check_body(request: dict[str, Any], rules: Rules, line: int) -> _Request | Problem:
    model = request["body"].get("model")
    if model in (None, ""):
        return Problem("missing_required_parameter", "Missing required parameter: 'body.model'.", "body.model", line)
    if not isinstance(model, str):
        return Problem("invalid_request", "'body.model' must be a string.", "body.model", line)
    if rules.models is not None and model not in rules.models:
        served = ", ".join(sorted(rules.models))
        message = f"The model {_shown(model)} does not exist here. Served: {served}."
        return Problem("model_not_found", message, "body.model", line)
    if request["body"].get("stream"):
        return Problem("streaming", "A batch cannot stream: remove 'stream'.", "body.stream", line)
    return _Request(request["custom_id"], model)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:76]}…{text[-1]}"
