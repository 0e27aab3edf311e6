"""run_batch: a job from its dataset to its joined table, in one process.

Killed at any moment and run again, it goes on where it was.
"""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import name_run
from overnight.job import Job
from overnight.lease import leased
from overnight.local import stop_local_endpoint
from overnight.queue import ended_batches, submittable
from overnight.run import Run, open_run
from overnight.summary import Summary
from tasks.build import build_requests
from tasks.fetch import fetch_files
from tasks.join import join_answers
from tasks.parse import parse_answers
from tasks.report import write_report
from tasks.submit import submit_shard
from tasks.validate import validate_requests
from tasks.wait import wait_for_batches

PATIENCE = 3600.0
"""Seconds to wait for another process that is at work on the job, and between two task runs of `wait`."""


@flow(
    name="run_batch",
    flow_run_name=name_run,
    validate_parameters=False,
    task_runner=ThreadPoolTaskRunner(max_workers=4),  # type: ignore[arg-type]  # Prefect's own; generics do not fit
)
def run_batch(job: Job | dict[str, Any] | str, dataset: Any = None, home: str | None = None) -> Summary:
    """Runs a job: build → validate → submit → wait → fetch → parse → join → report.

    Args:
        job: a `Job`, its fields as a dict, or the path of its file.
        dataset: a pandas DataFrame in place of the job's dataset.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Returns:
        Counts, tokens, cost and paths; its `to_pandas()` is the joined table.

    Raises:
        OvernightError: the job could not be run; says what to mend.
    """
    started = time.monotonic()
    run = open_run(job, dataset, home)
    try:
        with leased(run.ledger, run.job.name, PATIENCE):
            validate_requests(run, build_requests(run))
        while not settled(run):
            with leased(run.ledger, run.job.name, PATIENCE) as owner:
                submit_ready(run, owner)
            wait_for_batches(run, PATIENCE)
            with leased(run.ledger, run.job.name, PATIENCE):
                collect_ended(run)
        with leased(run.ledger, run.job.name, PATIENCE):
            return write_report(run, join_answers(run), time.monotonic() - started)
    finally:
        stop_local_endpoint(run.home)


def settled(run: Run) -> bool:
    """Whether every request has its verdict."""
    return all(shard.settled for shard in run.ledger.shards(run.job.name))


def submit_ready(run: Run, owner: str) -> None:
    """Submits the shards that may go out now."""
    shards = submittable(run.ledger.shards(run.job.name), run.job, time.time())
    for submitted in [submit_shard.submit(run, shard, owner) for shard in shards]:
        submitted.result()


def collect_ended(run: Run) -> None:
    """Fetches and settles the batches that have ended."""
    ended = ended_batches(run.ledger.shards(run.job.name))
    for fetched in [fetch_files.submit(run, batch) for batch in ended]:
        parse_answers(run, fetched.result())
