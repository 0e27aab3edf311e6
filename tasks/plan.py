"""plan: what a build would send and cost, on the page."""

from __future__ import annotations

from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from overnight.ledger.builder import Build
from overnight.ledger.run import Run
from overnight.reports.dry_run import plan_of
from overnight.reports.plan import Plan
from overnight.text import artifact_key


def publish_plan(made: Plan) -> None:
    """Shows a plan on the page."""
    create_markdown_artifact(made.text, key=artifact_key("plan", made.job), description=f"plan of {made.job}")


@task(name="plan", task_run_name="plan", cache_policy=NO_CACHE)
def plan_requests(run: Run, build: Build, staging: Path) -> Plan:
    """Adds a staged build up, and publishes it."""
    made = plan_of(run, build, staging)
    publish_plan(made)
    return made
