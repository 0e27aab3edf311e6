"""plan_batch: what a job would send and cost. Spends nothing."""

from __future__ import annotations

from prefect import flow

from flows.names import JobInput, name_run
from flows.states import ending_in_words
from overnight.reports.dry_run import plan_job
from overnight.reports.plan import Plan
from tasks.credentials import open_job
from tasks.plan import plan_requests


@flow(name="plan_batch", flow_run_name=name_run, validate_parameters=False)
@ending_in_words
def plan_batch(job: JobInput, home: str | None = None) -> Plan:
    """Plans a job: rows, requests, shards, tokens, cost, and the first requests as they would be sent.

    Args:
        job: what to ask of which rows: fill in the form, or name a job file.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        OvernightError: the job could not be run; says what to mend.
    """
    return plan_job(open_job(job, home=home), plan_requests)
