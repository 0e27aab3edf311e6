"""What a run adds up to: the small summary that flows return, and the report as text."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

from overnight.home import shown
from overnight.records import Shard

if TYPE_CHECKING:  # a pipeline's step does without its 50 MB
    import pandas as pd


@dataclass
class Tally:
    """Counts gathered while the joined table is written."""

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """Rows by status."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by status and error code."""
    requests: int = 0
    """Distinct requests."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the distinct requests' answers."""
    cost_usd: float | None = None
    compared: int = 0
    """Rows with an answer and an expected one."""
    agreed: int = 0


@dataclass(frozen=True)
class Summary:
    """The outcome of a run. The paths are absolute."""

    job: str
    rows: int
    requests: int
    """Distinct requests: identical rows share one."""
    batches: int
    succeeded: int
    """Rows with an answer."""
    failed: int
    """All other rows; `statuses` says why."""
    statuses: Mapping[str, int]
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    """None where the price is not known."""
    max_failed_fraction: float
    joined: Path
    failed_rows: Path
    report: Path
    seconds: float

    @property
    def failed_fraction(self) -> float:
        """Rows without an answer, of all."""
        return self.failed / self.rows if self.rows else 0.0

    @property
    def within_bounds(self) -> bool:
        """Whether no more rows failed than the job allows."""
        return self.failed_fraction <= self.max_failed_fraction

    def to_pandas(self) -> pd.DataFrame:
        """The joined table, one row per row of the dataset."""
        frame: pd.DataFrame = pq.read_table(self.joined).to_pandas()
        return frame

    def as_json(self) -> dict[str, Any]:
        """The fields that `--json` prints."""
        names = ("job", "rows", "requests", "batches", "succeeded", "failed", "input_tokens", "output_tokens",
                 "cost_usd", "joined", "failed_rows", "seconds")  # fmt: skip
        values = asdict(self)
        return {name: str(values[name]) if isinstance(values[name], Path) else values[name] for name in names}


def dollars(amount: float | None) -> str:
    """An amount of USD for people: `unknown` where nobody knows it."""
    if amount is None:
        return "unknown"
    if amount == 0:
        return "$0"
    digits = 2 if amount >= 0.1 else min(8, 2 - math.floor(math.log10(amount)))
    return f"${amount:,.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def artifact_key(kind: str, job: str) -> str:
    """The key under which the Prefect page keeps a job's texts; it takes lower case letters, digits and dashes."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    lines = [f"| {' | '.join(row)} |" for row in ([*head], ["---"] * len(head), *cells)]
    return "\n".join(lines)


def report_text(summary: Summary, tally: Tally, shards: Sequence[Shard], cost_source: str, real_time: float | None,
                compare: str | None) -> str:  # fmt: skip
    """The report in Markdown.

    Args:
        summary: the outcome.
        tally: the counts behind it.
        shards: all shards of the job with their batches.
        cost_source: where the prices are from.
        real_time: how many times as much the tokens cost in real time.
        compare: the column of expected answers.
    """
    parts = [f"# {summary.job}", _rows_part(summary, tally)]
    if compare and tally.compared:
        share = tally.agreed / tally.compared
        parts.append(f"**Agreement** with `{compare}`: {tally.agreed:,} of {tally.compared:,} answers ({share:.1%}).")
    parts += [_errors_part(tally), _money_part(summary, tally, cost_source, real_time), _batches_part(shards)]
    files = [("joined table", summary.joined), ("rows without an answer", summary.failed_rows)]
    parts.append("## Files\n\n" + table(["what", "where"], [(what, f"`{shown(path)}`") for what, path in files]))
    return "\n\n".join(part for part in parts if part) + "\n"


def _rows_part(summary: Summary, tally: Tally) -> str:
    counted = [(status, f"{rows:,}", f"{rows / tally.rows:.1%}") for status, rows in tally.statuses.most_common()]
    total = ("**all rows**", f"{sum(tally.statuses.values()):,}", "")
    verdict = "within" if summary.within_bounds else "**above**"
    return "\n\n".join(
        [
            f"{tally.rows:,} rows, {tally.requests:,} distinct requests, {summary.batches:,} batches, "
            f"{duration(summary.seconds)}. {summary.failed_fraction:.1%} of the rows have no answer: {verdict} the "
            f"bound of {summary.max_failed_fraction:.1%}.",
            "## Rows",
            table(["status", "rows", "share"], [*counted, total]),
        ]
    )


def _errors_part(tally: Tally) -> str:
    if not tally.errors:
        return ""
    rows = [(status, code, f"{count:,}") for (status, code), count in tally.errors.most_common(30)]
    return "## Errors\n\n" + table(["status", "error_code", "rows"], rows)


def _money_part(summary: Summary, tally: Tally, source: str, real_time: float | None) -> str:
    rows = [
        ("input tokens", f"{tally.input_tokens:,}"),
        ("of them cached", f"{tally.cached_tokens:,}"),
        ("output tokens", f"{tally.output_tokens:,}"),
        ("cost", f"{dollars(summary.cost_usd)} ({source})"),
    ]
    if real_time and summary.cost_usd:
        spent = summary.cost_usd * real_time
        rows.append(("in real time", f"{dollars(spent)}: {dollars(spent - summary.cost_usd)} saved"))
    return "## Tokens and cost\n\n" + table(["", ""], rows)


def _batches_part(shards: Sequence[Shard]) -> str:
    rows = []
    for shard in shards:
        for batch in shard.batches:
            waited = (
                (batch.ended_at or 0) - (batch.submitted_at or 0) if batch.submitted_at and batch.ended_at else None
            )
            verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in (batch.verdicts or {}).items())
            rows.append(
                (
                    f"`{batch.batch_id or '–'}`",
                    shard.file_name,
                    f"{shard.requests:,}",
                    shard.attempt,
                    batch.status or batch.state,
                    duration(waited) if waited is not None else "–",
                    verdicts or "–",
                )
            )
    shown_rows = rows[-200:]
    more = f"\n\nThe last {len(shown_rows)} of {len(rows):,} batches." if len(rows) > len(shown_rows) else ""
    head = ["batch", "file", "requests", "attempt", "status", "took", "verdicts"]
    return "## Batches\n\n" + table(head, shown_rows) + more if rows else ""
