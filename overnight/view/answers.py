"""What the page asks for, by its path: the same over HTTP and in a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from overnight.errors import JobError
from overnight.ledger.run import Run, recorded_run
from overnight.limits.budget import planned_cost
from overnight.reports.look import differences
from overnight.reports.status import JobRow, job_rows
from overnight.store.objects import is_there
from overnight.view.rows import column_kinds

_MOST_DIFFERING = 200


def jobs(home: Path) -> list[dict[str, Any]]:
    """All jobs of a home, with what each was to cost."""
    return [{**one._asdict(), "planned_usd": planned(one, home)} for one in job_rows(home)]


def planned(job: JobRow, home: Path) -> float | None:
    """USD of a job's requests as they were planned: every answer as long as its limit; None where no price is known."""
    try:
        run = recorded_run(job.job, home)
        return sum(planned_cost(run.job, shard) for shard in run.ledger.shards(job.job) if shard.attempt == 1)
    except JobError:
        return None


def about(run: Run) -> dict[str, Any]:
    """What a job is, and the columns of its joined table."""
    joined = is_there(run.folder.joined)
    return {
        "job": run.job.name, "model": run.job.model, "provider": run.job.provider.profile, "joined": joined,
        "key": list(run.job.dataset.key), "prefix": run.job.output.prefix, "compare": run.job.report.compare,
        "columns": column_kinds(run.folder.joined) if joined else {},
    }  # fmt: skip


def compared(mine: Run, other: Run) -> dict[str, Any]:
    """Two jobs over the same rows: what each cost, and the rows where they differ.

    Raises:
        JobError: they are not over the same rows, or one has no joined table.
    """
    seen = differences(mine, other, limit=_MOST_DIFFERING)
    sides = []
    for run in (mine, other):
        (row,) = job_rows(run.home, run.job.name)
        sides.append({"job": run.job.name, "model": run.job.model, "cost_usd": row.cost_usd, "rows": row.rows})
    return {"sides": sides, **seen._asdict()}
