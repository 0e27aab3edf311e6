"""run_batch: a job from its dataset to its joined table, in one process.

Killed at any moment and run again, it goes on where it was; a sweep (`collect_batches`) may go on with it too.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

from flows.names import JobInput, label_run
from flows.notebook import shown_progress
from flows.pipeline import PATIENCE, Pipeline, job_flow
from flows.states import as_result
from flows.variants import run_variants
from overnight.reports.summary import Summary
from tasks.credentials import open_job


@job_flow("run_batch")
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
    if run.job.has_variants:
        return as_result(run_variants(run, run_batch, approve=approve))
    with Pipeline(run) as pipeline, shown_progress(pipeline.run):
        pipeline.prepare(approve=approve)
        go_on(pipeline)
        return as_result(pipeline.finish(started))


async def run_batch_async(
    job: JobInput, dataset: Any = None, home: str | None = None, approve: bool = False
) -> Summary:
    """`run_batch` for a running event loop, such as a notebook's: on a thread, so that the loop goes on.

    Args:
        job: as `run_batch` takes it; so are the others.
        dataset: a DataFrame in place of the job's dataset.
        home: the folder of runs.
        approve: send without asking.

    Returns:
        What `run_batch` returns; it raises the same. Several may be awaited at once.
    """
    return await asyncio.to_thread(run_batch, job, dataset, home, approve)


def go_on(pipeline: Pipeline) -> None:
    """Takes a pipeline through submit, wait, fetch and parse until every request is settled.

    Raises:
        Exception: what stopped a submission or a collection, once nothing is at the provider any more.
    """
    failure: Exception | None = None
    while not pipeline.settled:
        with pipeline.lease() as owner:
            failure = failure or pipeline.submit(owner)
            failure = pipeline.rescue(owner) or failure  # whatever keeps batches from going out, time runs
        label_run(pipeline.run)
        if failure and not pipeline.run.at_provider():
            with pipeline.lease():
                pipeline.collect()  # what an earlier run left
            raise failure
        pipeline.wait(PATIENCE, only_ends=failure is not None)
        with pipeline.lease():
            failure = pipeline.collect() or failure
        if pipeline.stuck:  # what may be answered yet is left to the sweeps
            if failure:
                raise failure
            return
