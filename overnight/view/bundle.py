"""A page of jobs as files: it opens from a disk or from any web server, and asks for nothing that is not beside it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from overnight.errors import JobError
from overnight.ledger.run import Run, recorded_run
from overnight.reports.status import job_rows
from overnight.store.files import disk_errors
from overnight.store.home import JobFolder
from overnight.store.objects import is_there
from overnight.view.answers import about, compared, jobs
from overnight.view.app import STATIC, as_json
from overnight.view.charts import charts
from overnight.view.details import details
from overnight.view.rows import Ask, page

MOST_ROWS: Final = 5_000
"""Of a job: the page says so where there are more."""
PAGE_ROWS: Final = 500
DETAIL_ROWS: Final = 100
_MARK: Final = "data/bundle.js"


def write_bundle(home: Path, names: Sequence[str], folder: Path) -> int:
    """Writes the page of some jobs into a folder, in place of a bundle that is there; returns the rows written.

    Args:
        home: the folder of runs.
        names: the jobs; all that are joined, where there is none.
        folder: where to.

    Raises:
        JobError: the folder holds something else, or a job has no joined table yet.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARK).exists():
        raise JobError(f"{folder} holds other files: name a new folder for the bundle")
    joined = [one.job for one in job_rows(home) if is_there(JobFolder(home, one.job).joined)]
    runs = [recorded_run(name, home) for name in names or joined]
    if lacking := [run.job.name for run in runs if not is_there(run.folder.joined)]:
        raise JobError(f"no joined table yet: {', '.join(lacking)}; `overnight status` tells what it waits for")
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with disk_errors(part):
        shutil.copytree(STATIC, part / "static", ignore=shutil.ignore_patterns("index.html"))
        front = (STATIC / "index.html").read_text()
        (part / "data").mkdir()
        (part / "index.html").write_text(front.replace("<script", f'<script src="{_MARK}" defer></script>\n<script', 1))
        about_all = {"rows": MOST_ROWS, "page": PAGE_ROWS, "details": DETAIL_ROWS, "data": {}}
        (part / _MARK).write_bytes(b"globalThis.overnightBundle = %b;\n" % as_json(about_all))
        _write(part, "jobs", [one for one in jobs(home) if one["job"] in {run.job.name for run in runs}])
        rows = sum(_write_job(part, run, runs) for run in runs)
        shutil.rmtree(folder, ignore_errors=True)
        part.replace(folder)
    return rows


def _write_job(part: Path, run: Run, runs: Sequence[Run]) -> int:
    name, table = run.job.name, run.folder.joined
    _write(part, name, about(run))
    _write(part, f"{name}/charts", charts(run))
    for other in runs:
        if other is not run:
            try:
                _write(part, f"{name}/compare/{other.job.name}", compared(run, other))
            except JobError as error:  # they are not over the same rows
                _write(part, f"{name}/compare/{other.job.name}", {"error": str(error)})
    total = page(table, Ask(limit=1)).total
    kept = min(total, MOST_ROWS)
    for start in range(0, kept, PAGE_ROWS):
        got = page(table, Ask(offset=start, limit=min(PAGE_ROWS, kept - start)))
        _write(part, f"{name}/rows/{start // PAGE_ROWS}", {"rows": got.rows, "total": total})
    for start in range(0, kept, DETAIL_ROWS):
        found = details(run, range(start, min(start + DETAIL_ROWS, kept)))
        _write(part, f"{name}/details/{start // DETAIL_ROWS}", found)
    return kept


def _write(part: Path, name: str, value: Any) -> None:
    """A script, since a page that is opened from a disk may read nothing else."""
    path = part / "data" / f"{name}.js"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"overnightBundle.data[%b] = %b;\n" % (as_json(name), as_json(value)))
