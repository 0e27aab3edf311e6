"""What a person sees of a run: live progress on a terminal, plain log lines elsewhere, and the outcome."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pyarrow as pa
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from overnight.home import shown
from overnight.job import Job
from overnight.parquet import read_batches
from overnight.prices import listed_rates
from overnight.records import Shard
from overnight.run import Run
from overnight.states import AT_PROVIDER
from overnight.summary import Summary, dollars, duration

_LOOK_SECONDS = 0.3
_SAMPLE_ROWS = 12
_COMPARED_MODEL = ("gpt-4o-mini", "openai")


class Standing(NamedTuple):
    """How far a run is."""

    text: str
    done: int
    total: int | None
    """Distinct requests; None until they are built."""


def standing(shards: list[Shard], requests: int | None) -> Standing:
    """How far a job's requests are, from the ledger."""
    if requests is None:
        return Standing("building the requests", 0, None)
    waiting = [shard for shard in shards if not shard.settled]
    batches = [batch for shard in waiting if (batch := shard.open_batch)]
    answered = sum((batch.done or 0) + (batch.failed or 0) for batch in batches)
    done = max(0, requests - sum(shard.requests for shard in waiting) + answered)
    at_provider = sum(batch.state in AT_PROVIDER for batch in batches)
    if not waiting:
        return Standing("joining the answers", done, requests)
    held = next((shard.hold_reason for shard in waiting if shard.hold_reason and shard.hold_until), None)
    why = f", held back: {held[:60]}" if held and not at_provider else ""
    left = len(waiting) - at_provider
    more = f", {left:,} to be sent" if left else ""
    return Standing(f"{at_provider:,} open batches{more}{why}", done, requests)


@contextmanager
def progress(run: Run, console: Console) -> Iterator[None]:
    """Shows a run's progress while the block runs."""
    if not console.is_terminal:
        yield
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    ended = threading.Event()
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("starting Prefect (half a minute the first time)", total=None)
        watcher = threading.Thread(target=_watch, args=(run, bars, bar, ended), daemon=True)
        watcher.start()
        try:
            yield
        finally:
            ended.set()
            watcher.join()


def _watch(run: Run, bars: Progress, bar: Any, ended: threading.Event) -> None:
    started = time.time()
    while not ended.wait(_LOOK_SECONDS):
        record = run.ledger.job(run.job.name)
        if record is not None and record.built_at >= started:
            now = standing(run.ledger.shards(run.job.name), record.requests)
            bars.update(bar, description=now.text, completed=now.done, total=now.total)


def configure_logging(console: Console, *, verbose: bool) -> None:
    """Log lines of overnight's own on stderr where there is no live display; Prefect's stay on its page.

    Has to run before Prefect is imported: its server, a child process, inherits the level.
    """
    if not verbose:
        os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    if not verbose and not console.is_terminal:
        lines = logging.StreamHandler(sys.stderr)
        lines.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%H:%M:%S"))
        ours = logging.getLogger("overnight")
        ours.setLevel(logging.INFO)
        ours.addHandler(lines)


def show_outcome(summary: Summary, console: Console) -> None:
    """Counts, tokens, cost and paths."""
    others = ", ".join(f"{rows:,} {status}" for status, rows in summary.statuses.items() if status != "succeeded")
    console.print(
        f"[bold]{summary.job}[/]: {summary.succeeded:,} of {summary.rows:,} rows answered"
        f"{f' ({others})' if others else ''}, {summary.requests:,} requests, {summary.batches:,} batches, "
        f"{duration(summary.seconds)}"
    )
    tokens = f"{summary.input_tokens:,} input and {summary.output_tokens:,} output tokens"
    console.print(f"{tokens}, cost {dollars(summary.cost_usd)}")
    for what, path in (("joined", summary.joined), ("failed", summary.failed_rows), ("report", summary.report)):
        console.print(f"  {what:<7} {shown(path)}", soft_wrap=True, highlight=False)
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
        table.add_row(*(str(value) for value in row.values()))
    console.print(table)
    if rates := listed_rates(*_COMPARED_MODEL, discount=None):
        cost = dollars(rates.cost(summary.input_tokens, summary.output_tokens))
        console.print(f"As batches of {_COMPARED_MODEL[0]} these tokens would cost {cost} ({rates.source}).")
