"""What a person sees of a run in a notebook: one bar in the cell, in place of log lines."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from flows.watching import watched
from overnight.ledger.run import Run
from overnight.reports.status import JobStatus, status_text


def in_notebook() -> bool:
    """Whether this process is a notebook's kernel."""
    return "ipykernel.zmqshell" in sys.modules


@contextmanager
def shown_progress(run: Run) -> Iterator[None]:
    """Shows a run's progress in the cell while the block runs; nothing outside of notebooks."""
    if not in_notebook():
        yield
        return
    from IPython.display import HTML, display  # type: ignore[import-not-found]  # noqa: PLC0415 - a kernel has it

    cell: Any = display(HTML(bar(run.job.name)), display_id=True)
    last: list[JobStatus] = []

    def show(now: JobStatus) -> None:
        if last[-1:] != [now]:
            last[:] = [now]
            cell.update(HTML(bar(now.job, now)))

    try:
        with watched(run, show):
            yield
    finally:
        cell.update(HTML(""))  # what the cell returns, or raises, says how it ended


def bar(job: str, now: JobStatus | None = None) -> str:
    """A job's bar as HTML: how many of its requests are answered, and what is awaited."""
    if now is None:
        return f"<progress></progress> <b>{escape(job)}</b>: building the requests"
    counted = f"{now.answered:,} of {now.requests:,} requests answered"
    filled = f'<progress value="{now.answered}" max="{max(1, now.requests)}"></progress>'
    return f"{filled} <b>{escape(job)}</b>: {counted}, {escape(status_text(now))}"
