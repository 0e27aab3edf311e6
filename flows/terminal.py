"""What a person sees of a run: live progress on a terminal, plain log lines elsewhere, and the outcome."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.prompt import Prompt
from rich.table import Table
from rich.text import Text

from flows.approval import Approval
from flows.shell import plain
from overnight.errors import JobError
from overnight.job.job import Job
from overnight.ledger.run import Run
from overnight.limits.prices import listed_rates
from overnight.reports.plan import Plan
from overnight.reports.status import JobStatus, job_status
from overnight.reports.summary import Summary
from overnight.store.home import shown
from overnight.store.parquet import read_batches
from overnight.text import counted_of, dollars, duration, printable

_LOOK_SECONDS = 0.3
_SAMPLE_ROWS = 12
_WIDE = 240
"""Columns of a table that goes to a file or a pipe, where ids should be whole."""
_COMPARED_MODEL = ("gpt-4o-mini", "openai")
_live: list[Progress] = []
"""Progress that is on the screen now."""


def status_text(now: JobStatus) -> str:
    """How far a run is, in a few words."""
    if now.done:
        return "joining the answers"
    why = f", held back: {now.held[:60]}" if now.held and not now.open_batches else ""
    more = f", {now.unsent:,} to be sent" if now.unsent else ""
    bad = f", {now.in_trouble:,} in trouble: {(now.trouble or '')[:80]}" if now.in_trouble else ""
    return f"{counted_of(now.open_batches, 'open batch')}{more}{why}{bad}"


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
    ended = threading.Event()
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("starting Prefect (half a minute the first time)", total=None)
        watcher = threading.Thread(target=_watch, args=(run, bars, bar, ended), daemon=True)
        watcher.start()
        _live.append(bars)
        try:
            yield
        finally:
            _live.remove(bars)
            ended.set()
            watcher.join()


def _watch(run: Run, bars: Progress, bar: Any, ended: threading.Event) -> None:
    started = time.time()
    while not ended.wait(_LOOK_SECONDS):
        record = run.ledger.job(run.job.name)
        if record is not None and record.built_at >= started:
            now = job_status(run.job.name, run.ledger.shards(run.job.name), record.requests, record.stopped)
            bars.update(bar, description=printable(status_text(now)), completed=now.answered, total=now.requests)


class _PlainFormatter(logging.Formatter):
    """Log lines hold what providers say: no order of theirs reaches the terminal."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def configure_logging(console: Console, *, verbose: bool) -> None:
    """Log lines of overnight's own on stderr where there is no live display; Prefect's stay on its page.

    Has to run before Prefect is imported: its server, a child process, inherits the level.
    """
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not verbose and not console.is_terminal:
        lines = logging.StreamHandler(sys.stderr)
        lines.setFormatter(_PlainFormatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        ours = logging.getLogger("overnight")
        ours.setLevel(logging.INFO)
        ours.addHandler(lines)


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
    console.print(table, width=None if console.is_terminal else _WIDE)


def ask(made: Plan, console: Console) -> Approval:
    """Shows a plan and asks whether to send it, or how many of the first rows.

    Raises:
        JobError: there is nobody to ask.
    """
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


def show_outcome(summary: Summary, console: Console) -> None:
    """Counts, tokens, cost and paths."""
    others = ", ".join(f"{rows:,} {status}" for status, rows in summary.statuses.items() if status != "succeeded")
    sent = f"{counted_of(summary.requests, 'request')}, {counted_of(summary.batches, 'batch')}"
    console.print(
        f"[bold]{summary.job}[/]: {summary.succeeded:,} of {summary.rows:,} rows answered"
        f"{f' ({others})' if others else ''}, {sent}, {duration(summary.seconds)}"
    )
    tokens = f"{summary.input_tokens:,} input and {summary.output_tokens:,} output tokens"
    extra = (summary.billed_usd or 0) - (summary.cost_usd or 0)
    more = f", {dollars(summary.billed_usd)} with every attempt" if extra > 1e-9 else ""
    console.print(f"{tokens}, cost {dollars(summary.cost_usd)}{more}")
    for what, path in (("joined", summary.joined), ("failed", summary.failed_rows), ("report", summary.report)):
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


def show_answers(summary: Summary, job: Job, console: Console) -> None:
    """A few rows with their answers, and what the tokens would cost elsewhere."""
    first: pa.RecordBatch = next(read_batches(summary.joined))
    table = Table(title="the first answers")
    names = [name for name in ("review", "answer", job.report.compare) if name and name in first.schema.names]
    for name in names:
        table.add_column(name)
    for row in first.slice(0, _SAMPLE_ROWS).select(names).to_pylist():
        table.add_row(*(Text(printable(value)) for value in row.values()))
    console.print(table)
    if rates := listed_rates(*_COMPARED_MODEL, discount=None):
        mean = summary.input_tokens / max(1, summary.requests)
        cost = dollars(rates.cost(summary.input_tokens, summary.output_tokens, largest=mean))
        console.print(f"As batches of {_COMPARED_MODEL[0]} these tokens would cost {cost} ({rates.source}).")
