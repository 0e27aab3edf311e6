"""plan_batch: what a job would send and cost. Spends nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from prefect import flow

from flows.names import JobInput, name_run
from overnight.ledger.builder import Build
from overnight.ledger.run import Run
from overnight.providers.provider import require_batch_api
from overnight.reports.plan import Plan
from tasks.build import build_into
from tasks.credentials import open_job
from tasks.plan import plan_of, plan_requests
from tasks.validate import check_files


def plan(run: Run, add_up: Callable[[Run, Build, Path], Plan] = plan_of) -> Plan:
    """Builds and validates in a temporary folder, and adds up: build → validate → plan.

    Args:
        run: the job.
        add_up: the last step; a flow publishes the plan in it.

    Raises:
        OvernightError: what `run_batch` would refuse before it sends anything, except the provider's own answer.
    """
    require_batch_api(run.job.profile)
    with tempfile.TemporaryDirectory(prefix="overnight-plan-") as folder:
        staging = Path(folder)
        build = build_into(staging, run)
        check_files(staging, build, run.job.profile)
        return add_up(run, build, staging)


@flow(name="plan_batch", flow_run_name=name_run, validate_parameters=False)
def plan_batch(job: JobInput, home: str | None = None) -> Plan:
    """Plans a job: rows, requests, shards, tokens, cost, and the first requests as they would be sent.

    Args:
        job: what to ask of which rows: fill in the form, or name a job file.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        OvernightError: the job could not be run; says what to mend.
    """
    return plan(open_job(job, home=home), plan_requests)
