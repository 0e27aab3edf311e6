"""The report of a run in Markdown, with charts that Prefect's page renders (Mermaid). Pure: figures in, text out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from overnight.job.job import Job
from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.limits.budget import batch_cost, spending
from overnight.limits.hours import given_text
from overnight.limits.prices import job_rates
from overnight.reports.agreement import Agreement
from overnight.reports.look import Failure, Share
from overnight.reports.summary import Summary, Tally
from overnight.store.home import shown
from overnight.text import code, counted_of, dollars, duration, inline, table

_MOST_BATCHES = 200
_MOST_BARS = 40
_SLOWEST = 5
_BAR = 30
"""Characters of the longest bar."""
_GREEN, _RED, _ORANGE, _GREY, _BLUE, _TEXT = "#3fa34d", "#d64545", "#e0912f", "#8a8f98", "#4c7bd9", "#9aa4b2"
_COLOURS = {"succeeded": _GREEN, "failed": _RED, "refused": _ORANGE, "invalid": _ORANGE}
_PIE = {"pieTitleTextColor": _TEXT, "pieLegendTextColor": _TEXT, "pieSectionTextColor": "#ffffff", "pieOpacity": "1"}
_BARS = {"textColor": _TEXT, "titleColor": _TEXT, "primaryTextColor": _TEXT, "taskTextColor": "#ffffff",
          "taskTextDarkColor": "#ffffff", "taskTextOutsideColor": _TEXT, "doneTaskBkgColor": _GREEN,
          "doneTaskBorderColor": _GREEN, "critBkgColor": _RED, "critBorderColor": _RED, "taskBkgColor": _BLUE,
          "sectionBkgColor": "transparent", "altSectionBkgColor": "transparent", "gridColor": _GREY}  # fmt: skip
_GANTT = {"useWidth": 640, "leftPadding": 90, "fontSize": 13, "sectionFontSize": 13, "barHeight": 20}


class Attempt(NamedTuple):
    """One batch of a shard."""

    shard: Shard
    batch: Batch

    @property
    def answered_all(self) -> bool:
        """Whether every request of it was answered, and so counted."""
        return set(self.batch.verdicts or {}) <= {"succeeded", "invalid", "refused"}

    @property
    def seconds(self) -> float | None:
        """From its creation to its end."""
        return (
            self.batch.ended_at - self.batch.submitted_at if self.batch.ended_at and self.batch.submitted_at else None
        )


def report_text(
    summary: Summary, tally: Tally, shards: Sequence[Shard], job: Job, shares: Sequence[Share] = (),
    compared: Agreement | None = None, failed: Sequence[Failure] = (),
) -> str:  # fmt: skip
    """The whole report: what a person asks first stands first.

    Args:
        summary: the outcome.
        tally: the counts behind it.
        shards: all shards of the job with their batches.
        job: what was asked.
        shares: the commonest answers and their rows, where answers repeat.
        compared: how the answers agree with the expected ones.
        failed: why rows have no answer.
    """
    attempts = [Attempt(shard, batch) for shard in shards for batch in shard.batches]
    files = [("joined table", summary.joined), ("rows without an answer", summary.failed_rows)]
    parts = [
        f"# {summary.job}",
        _outcome(summary, tally),
        _answers(shares, summary.succeeded),
        _agreement(compared, job),
        _rows(tally),
        _errors(failed),
        _money(summary, tally, job, attempts),
        _batches(attempts, job),
        _held(shards),
        "## Files\n\n" + table(["what", "where"], [(what, code(shown(path))) for what, path in files]),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def pie(title: str, slices: Sequence[tuple[str, int, str]]) -> str:
    """A Mermaid pie of names, counts and colours, largest first as Mermaid itself sorts them."""
    shown_slices = sorted((one for one in slices if one[1]), key=lambda one: -one[1])
    colours = {f"pie{number}": colour for number, (_, _, colour) in enumerate(shown_slices, 1)}
    lines = ["pie showData", f"  title {title}", *(f'  "{name}" : {count}' for name, count, _ in shown_slices)]
    return _chart({"themeVariables": _PIE | colours}, lines)


def _chart(init: dict[str, Any], lines: Sequence[str]) -> str:
    """A Mermaid chart in colours that can be read on the page's dark ground and on a light one."""
    return "\n".join(["```mermaid", f"%%{{init: {json.dumps({'theme': 'base'} | init)}}}%%", *lines, "```"])


def _outcome(summary: Summary, tally: Tally) -> str:
    verdict = "within" if summary.within_bounds else "**above**"
    notes = []
    if summary.stopped:
        what = "What was not sent is `missing` with code `not_sent`; a later run sends it."
        notes.append(f"**Stopped**: {inline(summary.stopped)}. {what}")
    if summary.awaited:
        notes.append(
            f"**Not over**: {summary.awaited:,} rows are `missing` with code `awaited`. Their batches cannot be "
            "collected for now; `overnight collect` goes on asking for as long as the provider keeps outputs, and joins"
            " them then. `overnight cancel` gives them up."
        )
    if summary.new_rows:
        notes.append(f"**New rows**: {summary.new_rows:,} came since the job was built; run it again to send them.")
    share = summary.succeeded / max(1, summary.rows)
    return "\n\n".join(
        [
            f"**{summary.succeeded:,} of {summary.rows:,} rows answered** ({share:.1%}), cost "
            f"{dollars(summary.cost_usd)}. `overnight view {summary.job}` opens them on a page of the machine that has "
            "the files.",
            f"{tally.rows:,} rows, {tally.requests:,} distinct requests, {counted_of(summary.batches, 'batch')}, "
            f"{duration(summary.seconds)}. {summary.failed_fraction:.1%} of the rows have no answer: {verdict} the "
            f"bound of {summary.max_failed_fraction:.1%}.",
            *notes,
        ]
    )


def _rows(tally: Tally) -> str:
    counted = [(status, f"{rows:,}", f"{rows / tally.rows:.1%}") for status, rows in tally.statuses.most_common()]
    total = ("**all rows**", f"{sum(tally.statuses.values()):,}", "")
    slices = [(status, rows, _COLOURS.get(status, _GREY)) for status, rows in tally.statuses.items()]
    drawn = [pie("rows", slices)] if len(tally.statuses) > 1 else []
    return "\n\n".join(["## Rows", *drawn, table(["status", "rows", "share"], [*counted, total])])


def _answers(shares: Sequence[Share], answered: int) -> str:
    """The commonest answers, each with a bar as long as its share of all."""
    if not shares:
        return ""
    rows = [
        (inline(str(one.value)[:80]), f"{one.rows:,}", f"{one.rows / max(1, answered):.1%}",
         "█" * max(1, round(_BAR * one.rows / max(1, answered))))
        for one in shares
    ]  # fmt: skip
    rest = answered - sum(one.rows for one in shares)
    more = [("*all others*", f"{rest:,}", f"{rest / answered:.1%}", "")] if rest > 0 else []
    return "## Answers\n\n" + table(["answer", "rows", "share", ""], [*rows, *more])


def _agreement(found: Agreement | None, job: Job) -> str:
    if found is None or not found.compared:
        return ""
    share = found.agreed / found.compared
    parts = [
        f"## Agreement with {code(job.report.compare)}",
        f"**{found.agreed:,} of {found.compared:,} answers agree** ({share:.1%}).",
        _confusion(found),
    ]
    if found.differing.rows and job.report.samples:
        rows = [[inline(str(cell)[:200]) for cell in row] for row in found.differing.rows]
        parts.append(f"The first of the {found.differing.found:,} that differ:")
        parts.append(table([inline(name) for name in found.differing.columns], rows))
    return "\n\n".join(part for part in parts if part)


def _confusion(found: Agreement) -> str:
    """Expected answers down, given ones across."""
    if not found.confusion:
        return ""
    counts = {(pair.expected, pair.answer): pair.rows for pair in found.confusion}
    given = sorted({pair.answer for pair in found.confusion})
    rows = [
        [f"**{inline(expected)}**", *(f"{counts.get((expected, answer), 0):,}" for answer in given)]
        for expected in sorted({pair.expected for pair in found.confusion})
    ]
    return table(["expected ↓ answered →", *map(inline, given)], rows)


def _errors(failed: Sequence[Failure]) -> str:
    if not failed:
        return ""
    keyed = any(one.key for one in failed)
    rows = [
        (one.status, inline(one.code), f"{one.rows:,}", f"{one.first + 1:,}", *([inline(one.key)] if keyed else []),
         inline(one.message[:200]))
        for one in failed
    ]  # fmt: skip
    head = ["status", "error_code", "rows", "first row", *(["its key"] if keyed else []), "its message"]
    return "## Errors\n\n" + table(head, rows)


def _money(summary: Summary, tally: Tally, job: Job, attempts: Sequence[Attempt]) -> str:
    rates = job_rates(job)
    source = rates.source if rates else "no price is known: set provider.prices"
    fresh = tally.input_tokens - tally.cached_tokens
    cached = f"{tally.cached_tokens:,} ({tally.cached_tokens / tally.input_tokens:.0%})" if tally.input_tokens else "0"
    rows = [
        ("input tokens", f"{tally.input_tokens:,}"),
        ("of them cached", cached),
        *_written(attempts),
        ("output tokens", f"{tally.output_tokens:,}"),
        ("cost of these answers", f"{dollars(summary.cost_usd)} ({source})"),
    ]
    asked, dear = _rescued(job, attempts)
    if rates and rates.real_time and summary.cost_usd and dear is not None and summary.cost_usd - dear > 1e-9:
        spent = dear + (summary.cost_usd - dear) * rates.real_time
        rows.append(("in real time", f"{dollars(spent)}: {dollars(spent - summary.cost_usd)} saved"))
    if asked:
        good = sum((one.batch.verdicts or {}).get("succeeded", 0) for one in asked)
        requests = counted_of(sum(one.shard.requests for one in asked), "request")
        rows.append(("rescued in real time", f"{good:,} of {requests}, for {dollars(dear)}"))
    slices = [
        ("input", fresh, _BLUE),
        ("cached input", tally.cached_tokens, _GREY),
        ("output", tally.output_tokens, _GREEN),
    ]
    tokens = pie("tokens", slices)
    rows += [
        *_billed(summary, attempts),
        *_budget(job, attempts),
        *_tiers(attempts),
        *_hours(attempts),
    ]
    return "\n\n".join(["## Tokens and cost", *([tokens] if tally.input_tokens else []), table(["", ""], rows)])


def _written(attempts: Sequence[Attempt]) -> Iterator[tuple[str, str]]:
    """What caching the shared text cost: tokens that were written to a cache, by all attempts."""
    used = Counter[str]()
    for one in attempts:
        used.update(one.batch.usage or {})
    if written := used["written_tokens"] + used["written_hour_tokens"]:
        yield "written to a cache, by all attempts", f"{written:,}, of them {used['written_hour_tokens']:,} for an hour"


def _rescued(job: Job, attempts: Sequence[Attempt]) -> tuple[list[Attempt], float | None]:
    """What was asked in real time, since no batch had answered it in time, and its USD; None where it is not known."""
    asked = [one for one in attempts if one.batch.real_time and one.batch.state is State.COLLECTED]
    costs = [batch_cost(job, one.shard, one.batch) for one in asked]
    return asked, None if None in costs else sum(one or 0.0 for one in costs)


def _billed(summary: Summary, attempts: Sequence[Attempt]) -> Iterator[tuple[str, str]]:
    """All attempts of all runs: what they used, beside what was estimated."""
    metered = [one for one in attempts if one.batch.usage]
    used = Counter[str]()
    for one in metered:
        used.update(one.batch.usage or {})
    if not metered:
        return
    yield "billed in all, every attempt", dollars(summary.billed_usd)
    whole = [one for one in metered if one.answered_all]
    estimated = sum(one.shard.tokens for one in whole)
    actual = sum((one.batch.usage or {}).get("input_tokens", 0) for one in whole)
    text = f"{used['input_tokens']:,}"
    if estimated and actual:
        text += f"; where all was answered: estimated {estimated:,}, was {actual:,} ({actual / estimated - 1:+.0%})"
    yield "input tokens of all attempts", text
    if used["unmetered"]:
        yield "answers whose tokens the provider does not tell", f"{used['unmetered']:,}"


def _budget(job: Job, attempts: Sequence[Attempt]) -> Iterator[tuple[str, str]]:
    shards = list({one.shard.id: one.shard for one in attempts}.values())
    if job_rates(job) is None:
        return
    spent = spending(job, shards)
    if spent.untold:
        what = "what answers that were lost, or came without their tokens, may have cost besides, at the most"
        yield what, dollars(spent.untold)
    if (budget := job.limits.budget_usd) is not None:
        yield "budget", f"{dollars(spent.spent)} of {dollars(budget)}"


def _tiers(attempts: Sequence[Attempt]) -> Iterator[tuple[str, str]]:
    """What the provider says of the tier that it served the answers in: whether the discount shows."""
    tiers = Counter[str]()
    for one in attempts:
        tiers.update(one.batch.service_tiers or {})
    if tiers:
        said = ", ".join(f"{count:,} {inline(tier)}" for tier, count in tiers.most_common())
        shows = "the batch tier shows" if set(tiers) == {"batch"} else "the bill tells whether the discount was given"
        yield "service tier, as the provider reports it", f"{said}: {shows}"


def _hours(attempts: Sequence[Attempt]) -> Iterator[tuple[str, str]]:
    """What the clock gave, where an endpoint waits for cheap hours."""
    if told := given_text(one.batch.hours for one in attempts if one.batch.hours):
        yield "cheap hours", told


def _batches(attempts: Sequence[Attempt], job: Job) -> str:
    if not attempts:
        return ""
    ended = [one for one in attempts if one.seconds is not None]
    slowest = sorted(ended, key=lambda one: -(one.seconds or 0))[:_SLOWEST]
    parts = ["## Batches", _timeline(ended)]
    if len(ended) > _SLOWEST:
        named = ", ".join(f"{code(one.batch.batch_id)} ({duration(one.seconds or 0)})" for one in slowest)
        parts.append(f"The slowest: {named}.")
    shown_attempts = attempts[-_MOST_BATCHES:]
    head = ["batch", "file", "requests", "attempt", "status", "took", "verdicts", "input", "output", "cost"]
    parts.append(table(head, [_batch_row(one, job) for one in shown_attempts]))
    if len(attempts) > len(shown_attempts):
        parts.append(f"The last {len(shown_attempts)} of {len(attempts):,} batches.")
    return "\n\n".join(part for part in parts if part)


def _timeline(ended: Sequence[Attempt]) -> str:
    """A gantt chart of batches in UTC, from their creation to their end."""
    if not ended:
        return ""
    shown_bars = ended[-_MOST_BARS:]
    starts = [one.batch.submitted_at or 0.0 for one in shown_bars]
    ends = [max(one.batch.ended_at or 0.0, start + 1) for one, start in zip(shown_bars, starts, strict=True)]
    marks = {"completed": "done, ", "expired": "crit, ", "failed": "crit, ", "lost": "crit, "}
    bars = [
        f"  section {one.shard.file_name.removesuffix('.jsonl')}\n"
        f"  {_word(one.batch.status)} : {marks.get(one.batch.status or '', '')}{_moment(start)}, {_moment(end)}"
        for one, start, end in zip(shown_bars, starts, ends, strict=True)
    ]
    init = {"themeVariables": _BARS, "gantt": _GANTT}
    head = ["gantt", "  title batches (UTC)", "  dateFormat YYYY-MM-DDTHH:mm:ss", *_axis(max(ends) - min(starts))]
    return _chart(init, [*head, *bars])


def _word(status: str | None) -> str:
    """A provider's word as the name of a bar: Mermaid takes anything else in it for its own syntax."""
    return re.sub(r"[^A-Za-z_ -]", "", status or "")[:40] or "ended"


def _moment(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _axis(span: float) -> list[str]:
    """About five ticks over a span of seconds, and how their times are written."""
    for seconds, unit, form in ((86_400, "day", "%d.%m."), (3600, "hour", "%H:%M"), (60, "minute", "%H:%M")):
        if span > 4 * seconds:
            return [f"  axisFormat {form}", f"  tickInterval {max(1, round(span / 5 / seconds))}{unit}"]
    return ["  axisFormat %H:%M:%S", f"  tickInterval {max(1, round(span / 5))}second"]


def _batch_row(one: Attempt, job: Job) -> tuple[str, ...]:
    shard, batch = one
    verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in (batch.verdicts or {}).items())
    usage = batch.usage or {}
    return (
        code(batch.batch_id or "–"),
        shard.file_name,
        f"{shard.requests:,}",
        str(shard.attempt)
        + (f", asked again {shard.reask}×" if shard.reask else "")
        + (f", created {batch.creates}×" if batch.creates > 1 else ""),
        inline(batch.status or batch.state),
        duration(one.seconds) if one.seconds is not None else "–",
        verdicts or "–",
        f"{usage['input_tokens']:,}" if usage else "–",
        f"{usage['output_tokens']:,}" if usage else "–",
        dollars(batch_cost(job, shard, batch)) if usage else "–",
    )


def _held(shards: Sequence[Shard]) -> str:
    """Why shards were held back: a full queue, or trouble on the way."""
    reasons = Counter(shard.hold_reason for shard in shards if shard.hold_reason)
    if not reasons:
        return ""
    rows = [(inline(reason[:300]), f"{count:,}") for reason, count in reasons.most_common(10)]
    return "## Held back\n\n" + table(["why", "batches"], rows)


def billed(job: Job, shards: Sequence[Shard]) -> float | None:
    """USD of all collected batches by the provider's token counts; None where a price is not known."""
    costs = [
        batch_cost(job, shard, batch) for shard in shards for batch in shard.batches if batch.state is State.COLLECTED
    ]
    return None if any(cost is None for cost in costs) else sum(cost or 0.0 for cost in costs)
