"""What went wrong, grouped, with examples and what to do about it. Pure: ledger rows and result parts in, text out."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from overnight.answers.results import part_name
from overnight.errors import JobError
from overnight.ledger.database import Ledger, ledger_exists
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run, all_shards, recorded_run
from overnight.reports.look import failures
from overnight.store.objects import address, is_there
from overnight.store.parquet import read_batches
from overnight.text import code, duration, inline, table

_EXAMPLES = 3
_ADVICE = (
    (r"rate_limit|http_429|too_many_requests", "the provider was busy: such requests are sent again"),
    (r"server_error|http_5\d\d|upstream_error|no_response", "the provider's fault: such requests are sent again"),
    (r"batch_expired|request_timeout", "time ran out: sent again in smaller batches; lower limits.max_requests"),
    (r"batch_cancelled", "somebody cancelled the batch: run the job again to send the rest"),
    (r"batch_lost", "the provider forgot the batch: limits.resubmit_lost sends it again, and may pay twice"),
    (
        r"reply_lost",
        "asked in real time, and its reply was lost: limits.resubmit_lost asks again, and may pay twice",
    ),
    (
        r"awaited",
        "its batch cannot be collected for now: overnight collect goes on asking; cancel gives it up",
    ),
    (r"not_sent", "never sent: the job was stopped before; run it again"),
    (r"^missing$", "the result files have no line for them: sent again; the provider may have charged for them"),
    (r"context_length|too_large|http_413", "the prompt is too long: shorten it in the template (text|truncate)"),
    (r"^cut$", "the answer hit its token limit: raise parameters.max_tokens"),
    (r"refusal|content_filter", "the model declined: reword the prompt, or leave these rows out"),
    (
        r"invalid_json|schema_violation|unknown_label|no_answer",
        "not in the form that was asked for: a plainer prompt or schema, limits.max_reasks, or a stronger model",
    ),
    (r"null_input", "a column in the prompt is null there: guard it with {% if %} or default()"),
    (r"template_error", "the template fails on these rows: see the message"),
    (r"model_not_found|unknown_model|http_404", "the model is not known there, or takes no batches: check `model`"),
    (r"invalid_api_key|http_401|http_403|permission", "the key may not do this: check provider.credentials"),
    (r"quota|billing", "the account cannot pay: top it up, then run the job again"),
    (r"token_limit|queue", "the account's queue is full: set limits.max_enqueued_tokens to send in waves"),
    (r"invalid|http_400|http_422|bad_request", "refused for good: the message says which part of the request"),
)


@dataclass
class Group:
    """Requests that failed for one reason."""

    requests: int = 0
    examples: list[tuple[str, str]] = field(default_factory=list)
    """custom_id and message of the first few."""


def advice(code: str) -> str:
    """What to do about an error code; empty where nothing is known."""
    return next((text for pattern, text in _ADVICE if re.search(pattern, code, re.IGNORECASE)), "")


def grouped(results: Iterable[tuple[str, str, str | None, str | None]]) -> dict[tuple[str, str], Group]:
    """Groups results that did not succeed.

    Args:
        results: custom_id, verdict, error code and message of each.
    """
    groups: dict[tuple[str, str], Group] = {}
    for custom_id, verdict, error, message in results:
        if verdict == "succeeded":
            continue
        group = groups.setdefault((verdict, error or "unknown"), Group())
        group.requests += 1
        if len(group.examples) < _EXAMPLES:
            group.examples.append((custom_id, (message or "")[:300]))
    return dict(sorted(groups.items(), key=lambda item: -item[1].requests))


def diagnosis_text(title: str, batches: Sequence[tuple[Shard, Batch]], groups: dict[tuple[str, str], Group]) -> str:
    """The diagnosis in Markdown.

    Args:
        title: the batch or the job.
        batches: those that it is about.
        groups: what failed in them.
    """
    parts = [f"# Diagnosis of {inline(title)}", _batches(batches)]
    whole = Counter((str(code), str(message)) for _, batch in batches for code, message, _ in batch.errors or [])
    if whole:
        rows = [
            (inline(error), inline(message[:300]), f"{count:,}", advice(error))
            for (error, message), count in whole.most_common(20)
        ]
        parts.append("## Errors of whole batches\n\n" + table(["code", "message", "times", "what to do"], rows))
    listed = _groups(groups) if groups else "None: every request that has a result succeeded."
    parts.append(f"## Errors by code, of every attempt\n\n{listed}")
    return "\n\n".join(part for part in parts if part) + "\n"


def _batches(batches: Sequence[tuple[Shard, Batch]]) -> str:
    rows = []
    for shard, batch in batches[-50:]:
        took = batch.ended_at - batch.submitted_at if batch.ended_at and batch.submitted_at else None
        verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in (batch.verdicts or {}).items())
        figures = (f"{shard.requests:,}", shard.attempt, duration(took) if took is not None else "–", verdicts or "–")
        where = (code(batch.batch_id or "–"), shard.file_name, batch.state, inline(batch.status or "–"))
        rows.append((*where, *figures, inline(batch.trouble or shard.hold_reason or "–")))
    head = ["batch", "file", "state", "status", "requests", "attempt", "took", "verdicts", "held back, or in trouble"]
    return "## Batches\n\n" + table(head, rows) if rows else ""


def _groups(groups: dict[tuple[str, str], Group]) -> str:
    rows = []
    for (verdict, error), group in groups.items():
        shown = "; ".join(f"{code(custom_id)} {inline(message)}".strip() for custom_id, message in group.examples)
        rows.append((verdict, inline(error), f"{group.requests:,}", shown, advice(error)))
    return table(["verdict", "code", "results", "examples", "what to do"], rows)


def diagnosis_of(name: str, home: Path) -> str:
    """What went wrong in a job, or in one batch by its id, in Markdown.

    Raises:
        JobError: the ledger knows neither.
    """
    run, batches = find_batches(name, home)
    if run.job.has_variants:
        return "\n".join(diagnosis_of(one.job.name, home) for one in run.variants().values())
    text = diagnosis_text(name, batches, grouped(_results(run, batches)))
    if name != run.job.name or not is_there(run.folder.joined) or not (unsent := failures(run, unsent=True)):
        return text
    rows = [
        (inline(one.code), f"{one.rows:,}", f"{one.first + 1:,}", inline(one.key) or "–", inline(one.message[:300]),
         advice(one.code))
        for one in unsent
    ]  # fmt: skip
    head = ["code", "rows", "first row", "its key", "its message", "what to do"]
    return f"{text}\n## Rows that were never sent\n\n{table(head, rows)}\n"


def find_batches(name: str, home: Path) -> tuple[Run, list[tuple[Shard, Batch]]]:
    """The batches of a job, or one batch by its id.

    Raises:
        JobError: the ledger knows neither.
    """
    shards = all_shards(home)
    matching = [(shard, batch) for shard in shards for batch in shard.batches if name in (shard.job, batch.batch_id)]
    if not matching and ledger_exists(home) and name in Ledger.of(home).jobs():
        return recorded_run(name, home), []
    if not matching:
        what = f"no job and no batch named {name!r}"
        raise JobError(f"the ledger of {address(home)} knows {what}: `overnight list` shows batches")
    return recorded_run(matching[0][0].job, home), matching


def _results(run: Run, batches: list[tuple[Shard, Batch]]) -> Iterator[tuple[str, str, str | None, str | None]]:
    columns = ["custom_id", "verdict", "error_code", "error_message"]
    for shard, batch in batches:
        part = run.folder.results / part_name(shard, batch)
        if is_there(part):
            for rows in read_batches(part, columns):
                yield from zip(*(rows[name].to_pylist() for name in columns), strict=True)
