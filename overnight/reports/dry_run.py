"""A plan: a build in a temporary folder, added up. Nothing is sent, and the job's folder is not touched."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from overnight.builds.checks import check_files, check_run
from overnight.builds.staging import build_into
from overnight.job.profiles import Profile, require_batch_api
from overnight.ledger.builder import Build
from overnight.ledger.database import ledger_exists
from overnight.ledger.run import Run
from overnight.limits.budget import spending
from overnight.limits.hours import endpoint_hours
from overnight.providers.dialects import dialect_of
from overnight.reports.plan import Plan, Unsendable, joint_plan, make_plan
from overnight.store.parquet import read_batches

_SAMPLES = 3


def plan_of(run: Run, build: Build, staging: Path) -> Plan:
    """Adds a staged build up."""
    shards = run.ledger.shards(run.job.name) if ledger_exists(run.home) else []
    so_far = spending(run.job, shards) if run.job.limits.budget_usd is not None else None
    samples, why = _sample_bodies(staging, build, run.job.profile), _unsendable(staging, build)
    return make_plan(run.job, build, samples, why, so_far, endpoint_hours(run.job.profile))


def _unsendable(staging: Path, build: Build) -> list[Unsendable]:
    """Why rows cannot be sent, the commonest reason first."""
    if not build.unsendable:
        return []
    counts: Counter[str] = Counter()
    first: dict[str, tuple[int, str]] = {}
    for batch in read_batches(staging / "rows.parquet", ["row", "error_code", "error_message"]):
        failed = batch.filter(batch["error_code"].is_valid())
        for row, code, message in zip(*(column.to_pylist() for column in failed.columns), strict=True):
            counts[code] += 1
            first.setdefault(code, (row + 1, message or ""))
    return [Unsendable(code, rows, *first[code]) for code, rows in counts.most_common()]


def _sample_bodies(staging: Path, build: Build, profile: Profile) -> list[dict[str, Any]]:
    """The first requests, in the provider's words."""
    if not build.shards:
        return []
    with (staging / build.shards[0].file_name).open("rb") as lines:
        question = dialect_of(profile).question
        return [dict(question(line).body) for line in islice(lines, _SAMPLES)]


def check_plan(run: Run) -> None:
    """Says what can be said against a job before its rows are read.

    Raises:
        OvernightError: the first thing that has to be mended.
    """
    for one in run.variants().values() or [run]:
        require_batch_api(one.job.profile)
        check_run(one)


def plan_job(run: Run, add_up: Callable[[Run, Build, Path], Plan] = plan_of) -> Plan:
    """Builds and validates in a temporary folder, and adds up: build → validate → plan.

    Args:
        run: the job.
        add_up: the last step; a flow publishes the plan in it.

    Raises:
        OvernightError: what `run_batch` would refuse before it sends anything, except the provider's own answer.
    """
    if run.job.has_variants:
        return joint_plan(run.job.name, {label: plan_job(one, add_up) for label, one in run.variants().items()})
    require_batch_api(run.job.profile)
    with tempfile.TemporaryDirectory(prefix="overnight-plan-") as folder:
        staging = Path(folder)
        build = build_into(staging, run)
        check_files(staging, build, run.job.profile)
        return add_up(run, build, staging)
