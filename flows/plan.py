"""plan_batch: what a job would send and cost. Spends nothing."""

from __future__ import annotations

from typing import Any

from prefect import flow

from flows.names import name_run
from overnight.job import Job
from overnight.planning import Plan
from overnight.run import open_run
from tasks.plan import plan_requests


@flow(name="plan_batch", flow_run_name=name_run, validate_parameters=False)
def plan_batch(job: Job | dict[str, Any] | str, home: str | None = None) -> Plan:
    """Plans a job: rows, requests, shards, tokens, cost, and the first requests as they would be sent.

    Args:
        job: a `Job`, its fields as a dict, or the path of its file.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        OvernightError: the job could not be run; says what to mend.
    """
    return plan_requests(open_run(job, home=home))
