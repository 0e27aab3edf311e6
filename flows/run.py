"""run_batch: a job from its dataset to its joined table, in one process.

Killed at any moment and run again, it goes on where it was; a sweep (`collect_batches`) may go on with it too.
"""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import JobInput, label_run, name_run
from flows.steps import PATIENCE, as_result, collect_ended, finish, prepare, settled, submit_ready
from overnight.lease import leased
from overnight.local import stop_local_endpoint
from overnight.run import Run
from overnight.summary import Summary
from tasks.connect import open_job
from tasks.wait import wait_for_batches


@flow(
    name="run_batch",
    flow_run_name=name_run,
    validate_parameters=False,
    task_runner=ThreadPoolTaskRunner(max_workers=4),  # type: ignore[arg-type]  # Prefect's own; generics do not fit
)
def run_batch(job: JobInput, dataset: Any = None, home: str | None = None, approve: bool = False) -> Summary:
    """Runs a job: build → validate → submit → wait → fetch → parse → join → report.

    Args:
        job: what to ask of which rows: fill in the form, or name a job file.
        dataset: from Python only: a pandas DataFrame in place of the job's dataset.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.
        approve: send without asking, whatever `limits.approve_above_usd` says.

    Returns:
        Counts, tokens, cost and paths; its `to_pandas()` is the joined table. In a deployment's run: a failed state
        where more rows failed than `max_failed_fraction`.

    Raises:
        OvernightError: the job could not be run; says what to mend.
    """
    started = time.monotonic()
    run = open_job(job, dataset, home)
    try:
        run = prepare(run, approve=approve)
        go_on(run)
        return as_result(finish(run, started))
    finally:
        stop_local_endpoint(run.home)


def go_on(run: Run) -> None:
    """Submit → wait → fetch → parse until every request is settled.

    Raises:
        Exception: what stopped a submission or a collection, once nothing is at the provider any more.
    """
    failure: Exception | None = None
    while not settled(run):
        with leased(run.ledger, run.job.name, PATIENCE) as owner:
            failure = failure or submit_ready(run, owner)
        label_run(run)
        if failure and not run.at_provider():
            raise failure
        wait_for_batches(run, PATIENCE)
        with leased(run.ledger, run.job.name, PATIENCE):
            failure = collect_ended(run) or failure


if __name__ == "__main__":
    from flows.__main__ import main

    main("run")
