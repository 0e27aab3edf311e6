"""plan: what a job would send and cost. Nothing is sent, and the job's folder is not touched."""

from __future__ import annotations

import json
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from overnight.budget import spending
from overnight.errors import InvalidRequests, NoBatchApi
from overnight.hours import endpoint_hours
from overnight.ledger import ledger_exists
from overnight.planning import Plan, make_plan
from overnight.provider import without_batch_api
from overnight.run import Build, Run
from overnight.summary import artifact_key
from tasks.build import build_into
from tasks.validate import staged_problems

_SAMPLES = 3


def check_plan(run: Run) -> None:
    """Refuses to plan for a provider that has no Batch API at all.

    Raises:
        NoBatchApi: says what to put before it.
    """
    if not run.job.profile.has_batch_api:
        raise NoBatchApi(without_batch_api(run.job.profile))


def plan(run: Run) -> Plan:
    """Builds and validates in a temporary folder, and adds up.

    Raises:
        OvernightError: what `run` would refuse before it sends anything, except the provider's own answer.
    """
    check_plan(run)
    with tempfile.TemporaryDirectory(prefix="overnight-plan-") as folder:
        staging = Path(folder)
        build = build_into(staging, run)
        if problems := staged_problems(staging, build, run.job.profile):
            raise InvalidRequests("the provider would refuse these requests:", problems)
        return plan_of(run, build, staging)


def plan_of(run: Run, build: Build, staging: Path) -> Plan:
    """Adds a staged build up."""
    shards = run.ledger.shards(run.job.name) if ledger_exists(run.home) else []
    so_far = spending(run.job, shards) if run.job.limits.budget_usd is not None else None
    return make_plan(run.job, build, _sample_bodies(staging, build), so_far, endpoint_hours(run.job.profile))


def _sample_bodies(staging: Path, build: Build) -> list[dict[str, Any]]:
    if not build.shards:
        return []
    with (staging / build.shards[0].file_name).open("rb") as lines:
        return [json.loads(line)["body"] for line in islice(lines, _SAMPLES)]


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE)
def plan_requests(run: Run) -> Plan:
    """Plans a job and publishes the plan."""
    made = plan(run)
    publish_plan(made)
    return made


def publish_plan(made: Plan) -> None:
    """Shows a plan on the page."""
    create_markdown_artifact(made.text, key=artifact_key("plan", made.job), description=f"plan of {made.job}")
