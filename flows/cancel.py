"""cancel_batch: ends a job. Open batches are cancelled, what they answered is kept and joined, nothing more is sent."""

from __future__ import annotations

import time

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import JobInput, name_run
from flows.steps import PATIENCE, collect_ended, finish, settled
from overnight.lease import leased
from overnight.local import stop_local_endpoint
from overnight.standing import Standing, standing_of
from tasks.cancel import cancel_batches
from tasks.connect import find_job
from tasks.wait import wait_for_batches

_CANCELLING_SECONDS = 900.0
"""How long a cancelled batch is waited for: OpenAI takes up to ten minutes. What takes longer is left to a sweep."""


@flow(
    name="cancel_batch",
    flow_run_name=name_run,
    validate_parameters=False,
    task_runner=ThreadPoolTaskRunner(max_workers=4),  # type: ignore[arg-type]  # Prefect's own; generics do not fit
)
def cancel_batch(job: JobInput, home: str | None = None) -> Standing:
    """Cancels a job's batches: cancel → wait → fetch → parse → join → report. A later run takes the job up again.

    Args:
        job: its name, or its job file.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        JobError: there is no such job.
        ProviderError: the provider refuses to be asked.
    """
    started, run = time.monotonic(), find_job(job, home)
    until = started + _CANCELLING_SECONDS
    try:
        with leased(run.ledger, run.job.name, PATIENCE) as owner:
            cancel_batches(run, owner)
        while not settled(run) and time.monotonic() < until:
            wait_for_batches(run, until - time.monotonic())
            with leased(run.ledger, run.job.name, PATIENCE) as owner:
                failure = collect_ended(run)
                cancel_batches(run, owner)  # a create whose reply was lost shows up late
            if failure:
                raise failure
        if settled(run):
            finish(run, started)
        return standing_of(run)
    finally:
        stop_local_endpoint(run.home)


if __name__ == "__main__":
    from flows.__main__ import main

    main("cancel")
