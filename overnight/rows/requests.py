"""Requests out of rows, a batch of rows at a time: rendered from a task's templates, or raw as the dataset has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa

from overnight.errors import Problem, TemplateError
from overnight.job.cells import values_of
from overnight.job.job import Job
from overnight.job.profiles import Profile
from overnight.job.prompt import compile_prompt
from overnight.job.task import Raw
from overnight.rows.fragments import REQUEST_LINES
from overnight.rows.ids import IdSet, id_hashes
from overnight.rows.lines import custom_id_of, request_lines
from overnight.rows.rules import CheckedLine, check_line
from overnight.text import did_you_mean


class Kind(NamedTuple):
    """What all lines of one shard share."""

    model: str
    url: str
    frame: int = 0
    """Bytes of every line that are no prompt: ids, keys, parameters."""


@dataclass(frozen=True)
class Requests:
    """The requests of one batch of rows. All lists have one item per row."""

    ids: list[str]
    lines: list[bytes]
    """Both are meaningless where the row has an error."""
    kinds: tuple[Kind, ...]
    """One for all, or one per row."""
    errors: dict[int, tuple[str, str]] = field(default_factory=dict)
    """Position: error code and message of a row that cannot be sent."""
    problems: list[Problem] = field(default_factory=list)
    """What has to be mended in the dataset before anything is sent."""


_exact = msgspec.json.Decoder(float_hook=Decimal)
_encode = msgspec.json.Encoder(decimal_format="number").encode
"""A body that a dataset holds is sent with all the digits that it has."""
_RAW_FRAME = 200
"""About what ids, keys and parameters take in a raw request line, in bytes."""
Source = Callable[[pa.RecordBatch, int], Requests]
"""Makes the requests of a batch, given the number (from 0) of its first row."""


def request_source(job: Job, schema: pa.Schema) -> Source:
    """What turns rows of a schema into a job's requests.

    Raises:
        TemplateError: a template has an error or names an unknown column.
        JobError: the answer's schema cannot be read.
    """
    if isinstance(job.task, Raw):
        return _raw_columns(job, job.task, schema) if job.task.body else _raw_file(job)
    prompt = compile_prompt(job, schema)
    envelope = len(request_lines(job.name, prompt.url, [b""]).lines[0])
    kind = Kind(job.model or "", prompt.url, envelope + prompt.frame)
    too_large, salts = _size_check(job.profile), _Salts(job)

    def render(batch: pa.RecordBatch, _first_row: int) -> Requests:
        bodies = prompt.bodies(batch)
        ids, lines = request_lines(job.name, prompt.url, bodies.texts, salts.of(batch, bodies.texts))
        return Requests(ids, lines, (kind,), too_large(lines, bodies.errors))

    return render


class _Salts:
    """What tells equal requests apart where each row is sent: the row's key, else how many the same went before.

    So a row that is put in or taken out makes no other request of the others.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._seen = IdSet()
        self._repeated: Counter[int] = Counter()

    def of(self, batch: pa.RecordBatch, bodies: list[bytes]) -> list[bytes] | None:
        """One per row of a batch; None where identical rows share a request."""
        if self._job.deduplicate:
            return None
        if self._job.dataset.key:
            keys = zip(*(values_of(batch[name]) for name in self._job.dataset.key), strict=True)
            return [msgspec.json.encode(key, enc_hook=str) for key in keys]
        hashes = id_hashes(bodies)
        salts = []
        for new, body in zip(self._seen.add(hashes).tolist(), hashes.tolist(), strict=True):
            if not new:  # a Counter of all of them would be a dict as large as the dataset
                self._repeated[body] += 1
            salts.append(b"%d" % (0 if new else self._repeated[body]))
        return salts


def _size_check(profile: Profile) -> Callable[[list[bytes], dict[int, tuple[str, str]]], dict[int, tuple[str, str]]]:
    def check(lines: list[bytes], errors: dict[int, tuple[str, str]]) -> dict[int, tuple[str, str]]:
        if max(map(len, lines), default=0) <= profile.max_bytes:
            return errors
        large = {at: len(line) for at, line in enumerate(lines) if len(line) > profile.max_bytes}
        return errors | {
            at: ("too_large", f"the request has {size:,} bytes; one batch takes {profile.max_bytes:,}")
            for at, size in large.items()
        }

    return check


def _raw_columns(job: Job, task: Raw, schema: pa.Schema) -> Source:
    column = task.body or ""
    if column not in schema.names:
        raise TemplateError(f"task.body: the dataset has no column {column!r}{did_you_mean(column, schema.names)}")
    too_large, salts = _size_check(job.profile), _Salts(job)

    def read(batch: pa.RecordBatch, first_row: int) -> Requests:
        bodies, kinds, errors, problems = [], [], {}, []
        for at, value in enumerate(batch[column].to_pylist()):
            body, wrong = _raw_body(value)
            if value is None:
                errors[at] = ("null_input", f"column {column!r} is null")
            elif wrong:
                problems.append(Problem(f"row {first_row + at + 1}", f"{column}: {wrong}"))
            kinds.append(Kind(str(body.get("model")), task.url, _RAW_FRAME))
            bodies.append(_encode(dict(sorted(body.items()))))
        ids, lines = request_lines(job.name, task.url, bodies, salts.of(batch, bodies))
        return Requests(ids, lines, tuple(kinds), too_large(lines, errors), problems)

    return read


def _raw_body(value: Any) -> tuple[dict[str, Any], str]:
    """A body out of a column, and what is wrong with it."""
    if isinstance(value, str | bytes):
        try:
            value = _exact.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return {}, f"not valid JSON ({error})"
    elif isinstance(value, dict):  # a struct column has every field in every row
        value = _without_nulls(value)
    if not isinstance(value, dict):
        return {}, "not a JSON object"
    if not isinstance(value.get("model"), str) or not value["model"]:
        return value, "`model` is missing: name the model in every body"
    return value, "`stream` is not possible in a batch" if value.get("stream") else ""


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(part) for name, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def _raw_file(job: Job) -> Source:
    endpoints = frozenset(job.profile.endpoints)

    def read(batch: pa.RecordBatch, _first_row: int) -> Requests:
        ids, lines, kinds, problems = [], [], [], []
        numbers, texts = (batch[name].to_pylist() for name in REQUEST_LINES.names)
        for number, text in zip(numbers, texts, strict=True):
            line = text.rstrip("\r").encode() + b"\n"
            checked = check_line(line, endpoints)
            if isinstance(checked, list):
                problems += [Problem(f"{job.dataset.path}:{number}", rule) for rule in checked]
                checked = CheckedLine("", "", "")
            elif custom_id_of(line) != checked.custom_id:
                problems.append(Problem(f"{job.dataset.path}:{number}", "custom_id stands in it twice"))
            ids.append(checked.custom_id)
            lines.append(line)
            kinds.append(Kind(checked.model, checked.url, _RAW_FRAME))
        return Requests(ids, lines, tuple(kinds), problems=problems)

    return read
