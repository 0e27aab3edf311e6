"""Serves every deployment of `prefect.yaml` from this process: no work pool, no worker.

    python -m deployments.serve

Needs a Prefect server (PREFECT_API_URL). Runs start in child processes in the current folder; schedules fire while this
process lives.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import yaml
from prefect import serve
from prefect.client.schemas.objects import ConcurrencyLimitConfig
from prefect.deployments.runner import RunnerDeployment
from prefect.flows import load_flow_from_entrypoint
from prefect.schedules import Cron, Interval, Schedule

FILE = Path(__file__).with_name("prefect.yaml")
_MOST_RUNS = 8


def deployments() -> list[RunnerDeployment]:
    """What `prefect.yaml` declares, for `serve`."""
    return [_deployment(one) for one in yaml.safe_load(FILE.read_text(encoding="utf-8"))["deployments"]]


def _deployment(declared: dict[str, Any]) -> RunnerDeployment:
    flow: Any = load_flow_from_entrypoint(declared["entrypoint"])
    limit = declared.get("concurrency_limit")
    made: RunnerDeployment = flow.to_deployment(
        name=declared["name"],
        description=declared["description"],
        tags=declared["tags"],
        parameters=declared.get("parameters", {}),
        schedules=[_schedule(one) for one in declared.get("schedules", ())],
        concurrency_limit=ConcurrencyLimitConfig.model_validate(limit) if limit else None,
    )
    return made


def _schedule(declared: dict[str, Any]) -> Schedule:
    if "cron" in declared:
        return Cron(declared["cron"], timezone=declared["timezone"], slug=declared["slug"])
    return Interval(declared["interval"], slug=declared["slug"])


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    serve(*deployments(), limit=_MOST_RUNS)
