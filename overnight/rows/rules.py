"""The rules that a Batch API applies to an input file, checked before anything is sent.

One bad line fails a whole batch at most providers (DeepInfra, OpenAI), hours after the upload.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import msgspec

from overnight.errors import Problem
from overnight.job.profiles import Profile
from overnight.rows.ids import IdSet, id_hashes
from overnight.rows.lines import CUSTOM_ID

BOM = b"\xef\xbb\xbf"


class CheckedLine(NamedTuple):
    """A request line that keeps the rules."""

    custom_id: str
    model: str
    url: str


class _Body(msgspec.Struct):
    model: str
    stream: bool | None = None


class _Line(msgspec.Struct):
    custom_id: str
    method: str
    url: str
    body: _Body


_decode = msgspec.json.Decoder(_Line).decode


def check_line(line: bytes, endpoints: Iterable[str]) -> CheckedLine | list[str]:
    """Checks one line by itself; returns its ids, or every rule that it breaks."""
    try:
        typed = _decode(line)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return _broken_rules(line, tuple(endpoints))
    if (
        typed.method == "POST"
        and typed.url in endpoints
        and typed.body.model
        and not typed.body.stream
        and CUSTOM_ID.fullmatch(typed.custom_id)
    ):
        return CheckedLine(typed.custom_id, typed.body.model, typed.url)
    return _broken_rules(line, tuple(endpoints))


def _broken_rules(line: bytes, endpoints: tuple[str, ...]) -> list[str]:
    if line.startswith(BOM):
        return ["starts with a byte order mark: save the file as UTF-8 without BOM"]
    try:
        request = json.loads(line)
    except ValueError as error:
        return [f"is not valid JSON ({error})"]
    if not isinstance(request, dict):
        return ["is not a JSON object"]
    body = request.get("body")
    found = [_wrong_id(request.get("custom_id"))]
    if request.get("method") != "POST":
        found.append(f"`method` has to be POST, not {_shown(request, 'method')}")
    if request.get("url") not in endpoints:
        found.append(f"`url` {_shown(request, 'url')} is not served here (there are: {', '.join(endpoints)})")
    if not isinstance(body, dict):
        found.append(f"`body` has to be a JSON object, not {_shown(request, 'body')}")
    else:
        if not isinstance(body.get("model"), str) or not body["model"]:
            found.append("`body.model` is missing: name the model")
        if body.get("stream"):
            found.append("`body.stream` is not possible in a batch: leave it out")
    return [problem for problem in found if problem] or ["cannot be read as a request"]


def _wrong_id(custom_id: Any) -> str:
    if not isinstance(custom_id, str) or not custom_id:
        return "`custom_id` is missing" if custom_id in (None, "") else "`custom_id` has to be a string"
    if len(custom_id) > 64:
        return f"`custom_id` has {len(custom_id)} characters: at most 64 are safe at every provider"
    return "" if CUSTOM_ID.fullmatch(custom_id) else "`custom_id` may hold only letters, digits, - and _"


def _shown(request: dict[str, Any], key: str) -> str:
    return f"{json.dumps(request[key])[:40]}" if key in request else "missing"


def check_lines(name: str, lines: Iterable[bytes], profile: Profile) -> Iterator[Problem]:
    """Checks a whole input file: each line, the ids among each other, one model and url, and the provider's limits.

    Args:
        name: the file's, for the messages.
        lines: with their newlines.
        profile: whose endpoints and limits count.

    Yields:
        Every problem, with its line.
    """
    seen = _Ids(name)
    endpoints = frozenset(profile.endpoints)
    first: CheckedLine | None = None
    size = count = number = 0
    for number, line in enumerate(lines, 1):
        size += len(line)
        if line.isspace():
            continue
        count += 1
        checked = check_line(line, endpoints)
        if isinstance(checked, list):
            yield from (Problem(f"{name}:{number}", rule) for rule in checked)
            continue
        first = first or checked
        if (checked.model, checked.url) != (first.model, first.url):
            yield Problem(f"{name}:{number}", f"one batch takes one model and url: {first.model} {first.url}, "
                          f"not {checked.model} {checked.url}")  # fmt: skip
        yield from seen.add(checked.custom_id, number)
    yield from seen.flush()
    if not count:
        yield Problem(name, "has no requests")
    if count > profile.max_requests:
        yield Problem(name, f"has {count:,} requests; {profile.name} takes {profile.max_requests:,}")
    if size > profile.max_bytes:
        yield Problem(name, f"has {size:,} bytes; {profile.name} takes {profile.max_bytes:,}")


class _Ids:
    """Finds ids that stand twice, a chunk at a time."""

    _CHUNK = 10_000

    def __init__(self, name: str) -> None:
        self._name, self._seen = name, IdSet()
        self._pending: list[tuple[str, int]] = []

    def add(self, custom_id: str, line: int) -> Iterator[Problem]:
        self._pending.append((custom_id, line))
        if len(self._pending) == self._CHUNK:
            yield from self.flush()

    def flush(self) -> Iterator[Problem]:
        new = self._seen.add(id_hashes([custom_id for custom_id, _ in self._pending]))
        for (custom_id, line), fresh in zip(self._pending, new.tolist(), strict=True):
            if not fresh:
                yield Problem(f"{self._name}:{line}", f"`custom_id` {custom_id!r} stands here a second time")
        self._pending.clear()
