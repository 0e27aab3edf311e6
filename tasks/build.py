"""build: rows of the dataset become request files and a map from rows to custom_ids, in a staging folder."""

from __future__ import annotations

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.builds.staging import stage
from overnight.ledger.builder import Build
from overnight.ledger.run import Run


@task(name="build", task_run_name="build", cache_policy=NO_CACHE)
def build_requests(run: Run) -> Build:
    """Renders every row, and stages what is still to be sent."""
    return stage(run)
