"""plan: what a build would send and cost. Nothing is sent, and the job's folder is not touched."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from overnight.ledger.builder import Build
from overnight.ledger.database import ledger_exists
from overnight.ledger.run import Run
from overnight.limits.budget import spending
from overnight.limits.hours import endpoint_hours
from overnight.reports.plan import Plan, make_plan
from overnight.text import artifact_key

_SAMPLES = 3


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


def publish_plan(made: Plan) -> None:
    """Shows a plan on the page."""
    create_markdown_artifact(made.text, key=artifact_key("plan", made.job), description=f"plan of {made.job}")


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE)
def plan_requests(run: Run, build: Build, staging: Path) -> Plan:
    """Adds a staged build up, and publishes it."""
    made = plan_of(run, build, staging)
    publish_plan(made)
    return made
