"""What a person sees of a run: live progress on a terminal, plain log lines elsewhere, and the outcome."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.prompt import Prompt
from rich.table import Table
from rich.text import Text

from flows.shell import plain
from flows.watching import watched
from overnight.errors import JobError
from overnight.ledger.run import Run
from overnight.limits.prices import listed_rates
from overnight.reports.plan import Plan
from overnight.reports.status import JobRow, JobStatus, status_text
from overnight.reports.summary import Summary
from overnight.store.home import shown
from overnight.text import counted_of, dollars, duration, printable

if TYPE_CHECKING:
    from flows.approval import Approval
    from overnight.reports.look import Look
    from overnight.reports.status import Sent

_FIRST_ROWS = 5
_MOST_MESSAGE = 160
_MOST_CHARACTERS = 300
_COMPARED_MODEL = ("gpt-4o-mini", "openai")
_live: list[Progress] = []
"""Progress that is on the screen now."""


@contextmanager
def progress(run: Run, console: Console) -> Iterator[None]:
    """Shows a run's progress while the block runs."""
    if not console.is_terminal:
        yield
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("starting Prefect (half a minute the first time)", total=None)

        def show(now: JobStatus) -> None:
            bars.update(bar, description=printable(status_text(now)), completed=now.answered, total=now.requests)

        _live.append(bars)
        try:
            with watched(run, show):
                yield
        finally:
            _live.remove(bars)


def status_line(now: JobStatus) -> str:
    """How far a job is, in a line."""
    if now.stopped and now.done:
        return f"{now.job}: stopped: {now.stopped}; its answers are joined"
    if now.done:
        return f"{now.job}: done, {counted_of(now.requests, 'request')}"
    return f"{now.job}: {now.answered:,} of {now.requests:,} requests answered, {status_text(now)}"


def show_markdown(text: str, console: Console) -> None:
    """Markdown as it looks on a terminal; as it stands elsewhere."""
    if console.is_terminal:
        console.print(Markdown(printable(text), hyperlinks=False))
    else:
        console.print(printable(text), markup=False, highlight=False, soft_wrap=True)


def show_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Rows of the same keys as a table."""
    if not rows:
        console.print("none")
        return
    table = Table()
    for name in rows[0]:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text("–" if value is None else printable(value)) for value in row.values()))
    console.print(table)


def show_jobs(jobs: Sequence[JobRow], console: Console) -> None:
    """Jobs as a table."""
    now = time.time()
    show_table(
        [{"job": one.job, "state": one.state, "rows": f"{one.rows:,}",
          "answered": f"{one.answered:,} of {one.requests:,}", "open batches": one.batches,
          "cost": dollars(one.cost_usd), "built": f"{duration(now - one.built_at)} ago", "waits for": one.waits_for}
         for one in jobs],
        console,
    )  # fmt: skip


def show_look(seen: Look, console: Console, *, title: str | None = None) -> None:
    """Rows of a joined table, cells cut to a few lines each: under a title, else with how many there are."""
    table = Table(title=title, show_lines=len(seen.columns) > 2)
    for name in seen.columns:
        table.add_column(printable(name), overflow="fold")
    for row in seen.rows:
        table.add_row(*(Text("–" if value is None else _cut(printable(value)), style="dim" if value is None else "")
                        for value in row))  # fmt: skip
    console.print(table)
    if title:
        return
    more = f"; {seen.found - len(seen.rows):,} more: --limit" if seen.found > len(seen.rows) else ""
    console.print(f"{seen.found:,} of {counted_of(seen.total, 'row')}{more}", highlight=False)


def _cut(text: str) -> str:
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"


def ask(made: Plan, console: Console) -> Approval:
    """Shows a plan and asks whether to send it, or how many of the first rows.

    Raises:
        JobError: there is nobody to ask.
    """
    from flows.approval import Approval  # noqa: PLC0415 - Prefect takes seconds to import

    if not sys.stdin.isatty():
        raise JobError("the job may cost more than limits.approve_above_usd, and there is nobody to ask: give --yes")
    with _paused():
        show_markdown(made.text, console)
        question = "Send it? yes, no, or how many of the first rows"
        answer = Prompt.ask(question, default="no", console=console).strip().lower()
    if answer.isdecimal() and int(answer) > 0:
        return Approval(decision="approve", max_rows=int(answer))
    return Approval(decision="approve" if answer in ("y", "yes") else "reject")


@contextmanager
def _paused() -> Iterator[None]:
    """Takes the live progress off the screen while the block runs."""
    for bars in _live:
        bars.stop()
    try:
        yield
    finally:
        for bars in _live:
            bars.start()


def show_outcome(summary: Summary, now: Sent, seconds: float, console: Console) -> None:
    """Counts, tokens, cost and paths; what this run did of it, and how long a person waited."""
    others = ", ".join(f"{rows:,} {status}" for status, rows in summary.statuses.items() if status != "succeeded")
    sent = f"{counted_of(summary.requests, 'request')}, {counted_of(summary.batches, 'batch')}"
    console.print(
        f"[bold]{summary.job}[/]: {summary.succeeded:,} of {summary.rows:,} rows answered"
        f"{f' ({others})' if others else ''}, {sent}"
    )
    parts = [
        f"{counted_of(now.new, 'new request')} sent",
        f"{counted_of(now.again, 'request')} sent again" if now.again else "",
        f"{max(0, summary.requests - now.new):,} known before",
        duration(seconds),
    ]
    console.print(f"this run: {', '.join(filter(None, parts))}", highlight=False)
    tokens = f"{summary.input_tokens:,} input and {summary.output_tokens:,} output tokens"
    extra = (summary.billed_usd or 0) - (summary.cost_usd or 0)
    more = f", {dollars(summary.billed_usd)} with every attempt" if extra > 1e-9 else ""
    console.print(f"{tokens}, cost {dollars(summary.cost_usd)}{more}")
    for what, path in (("joined", summary.joined), ("failed", summary.failed_rows), ("report", summary.report)):
        if what != "failed" or summary.failed:
            console.print(f"  {what:<7} {plain(shown(path))}", soft_wrap=True, highlight=False)
    if summary.stopped:
        console.print(f"[bold red]stopped[/]: {plain(summary.stopped)}; run it again to send the rest", soft_wrap=True)
    if summary.awaited:
        console.print(
            f"{counted_of(summary.awaited, 'row')} may be answered yet: overnight collect goes on asking for as long "
            "as the provider keeps outputs",
            soft_wrap=True,
        )
    if summary.new_rows:
        console.print(
            f"{counted_of(summary.new_rows, 'new row')} came since the job was built: run it again to send them"
        )
    if not summary.within_bounds:
        console.print(
            f"[bold red]{summary.failed_fraction:.1%} of the rows have no answer, more than max_failed_fraction "
            f"({summary.max_failed_fraction:.1%})[/]: the report says why"
        )


def show_overview(run: Run, summary: Summary, console: Console) -> None:
    """What the answers say: the first of them, the commonest, and the commonest errors with what to do about them."""
    from overnight.reports.diagnosis import advice  # noqa: PLC0415 - DuckDB is for after a run
    from overnight.reports.look import look, overview, usual_columns  # noqa: PLC0415

    prefix = run.job.output.prefix
    seen = overview(summary.joined, prefix)
    if seen.answers:
        shares = [
            f"{printable(one.value)} {one.rows:,} ({one.rows / max(1, summary.succeeded):.0%})" for one in seen.answers
        ]
        console.print(f"answers: {', '.join(shares)}", markup=False, highlight=False, soft_wrap=True)
    for code, rows, message in seen.errors:
        told = " ".join(printable(message).split())[:_MOST_MESSAGE]
        said = "; ".join(one for one in (told, advice(code)) if one)
        console.print(f"{counted_of(rows, 'row')} {code}: {said}", markup=False, highlight=False, soft_wrap=True)
    if summary.succeeded:
        columns = [name for name in usual_columns(run) if not name.endswith(("status", "error_code"))]
        succeeded = f"\"{prefix}status\" = 'succeeded'"
        show_look(look(summary.joined, columns, where=succeeded, limit=_FIRST_ROWS), console, title="the first answers")
    console.print(f"overnight show {run.job.name} has the rows, export writes them", style="dim", highlight=False)


def show_elsewhere(summary: Summary, console: Console) -> None:
    """What the tokens would cost at a provider."""
    if rates := listed_rates(*_COMPARED_MODEL, discount=None):
        mean = summary.input_tokens / max(1, summary.requests)
        cost = dollars(rates.cost(summary.input_tokens, summary.output_tokens, largest=mean))
        console.print(f"As batches of {_COMPARED_MODEL[0]} these tokens would cost {cost} ({rates.source}).")
