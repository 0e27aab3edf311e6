"""cancel_batch: ends a job. Open batches are cancelled, what they answered is kept and joined, nothing more is sent."""

from __future__ import annotations

import logging
import time

from flows.names import JobInput, held_job
from flows.pipeline import Pipeline, job_flow
from flows.variants import cancel_variants
from overnight.reports.status import JobStatus, status_of
from tasks.cancel import REASON
from tasks.credentials import find_job

logger = logging.getLogger("overnight.cancel")
CANCELLING_SECONDS = 900.0
"""How long a cancelled batch is waited for: OpenAI takes up to ten minutes. What takes longer is left to a sweep."""


@job_flow("cancel_batch")
def cancel_batch(job: JobInput, home: str | None = None, cancelled_run: str | None = None) -> JobStatus:
    """Cancels a job's batches: cancel → wait → fetch → parse → join → report. A later run takes the job up again.

    Args:
        job: its name, or its job file.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.
        cancelled_run: the flow run whose cancellation this follows from: nothing is done where it did not hold the job.

    Raises:
        JobError: there is no such job.
        ProviderError: the provider refuses to be asked.
    """
    started = time.monotonic()
    until = started + CANCELLING_SECONDS
    run = find_job(job, home)
    if run.job.has_variants:
        return cancel_variants(run, cancel_batch)
    with Pipeline(run) as pipeline:
        if cancelled_run and not held_job(cancelled_run, pipeline.run.job.name):
            logger.info("run %s was cancelled before it held the job: nothing is cancelled", cancelled_run)
            return status_of(pipeline.run)
        if not pipeline.settled:  # who asks in real time holds the lease for long, and looks here
            pipeline.run.ledger.ask_to_stop(pipeline.run.job.name, REASON)
        with pipeline.lease() as owner:
            pipeline.cancel(owner)
        while not pipeline.settled and time.monotonic() < until:
            pipeline.wait(until - time.monotonic())
            with pipeline.lease() as owner:
                failure = pipeline.collect()
                if not pipeline.settled:
                    pipeline.cancel(owner)  # a create whose reply was lost shows up late
            if failure:
                raise failure
        if pipeline.settled:
            pipeline.finish(started)
        return status_of(pipeline.run)
