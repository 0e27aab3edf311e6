"""submit_batch: a job from its dataset to batches at the provider.

It ends in minutes; `collect_batches` does the rest.
"""

from __future__ import annotations

from typing import Any

from flows.names import JobInput, label_run
from flows.pipeline import Pipeline, job_flow
from flows.variants import submit_variants
from overnight.reports.status import JobStatus, status_of
from tasks.credentials import open_job


@job_flow("submit_batch")
def submit_batch(job: JobInput, dataset: Any = None, home: str | None = None, approve: bool = False) -> JobStatus:
    """Builds, validates, and submits what the provider's queue takes: build → validate → submit.

    Args:
        job: what to ask of which rows: fill in the form, or name a job file.
        dataset: from Python only: a pandas DataFrame in place of the job's dataset.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.
        approve: send without asking, whatever `limits.approve_above_usd` says.

    Raises:
        OvernightError: the job could not be submitted; says what to mend.
    """
    run = open_job(job, dataset, home)
    if run.job.has_variants:
        return submit_variants(run, submit_batch, approve=approve)
    with Pipeline(run) as pipeline:
        pipeline.prepare(approve=approve)
        with pipeline.lease() as owner:
            failure = pipeline.submit(owner)
        label_run(pipeline.run)
        if failure:
            raise failure
        return status_of(pipeline.run)
