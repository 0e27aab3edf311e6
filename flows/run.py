"""run_batch: a job from its dataset to its joined table, in one process.

Killed at any moment and run again, it goes on where it was.
"""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.futures import PrefectFuture, wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import name_run
from overnight.job import Job
from overnight.lease import leased
from overnight.local import stop_local_endpoint
from overnight.queue import ended_batches
from overnight.run import Run, open_run
from overnight.summary import Summary
from tasks.build import build_requests
from tasks.clean import clean_files, cleanable
from tasks.fetch import fetch_files
from tasks.join import join_answers
from tasks.parse import parse_answers
from tasks.report import write_report
from tasks.submit import release, submit_shard
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
        failure: Exception | None = None
        while not settled(run):
            with leased(run.ledger, run.job.name, PATIENCE) as owner:
                failure = failure or submit_ready(run, owner)
            if failure and not run.at_provider():
                raise failure
            wait_for_batches(run, PATIENCE)
            with leased(run.ledger, run.job.name, PATIENCE):
                failure = collect_ended(run) or failure
        with leased(run.ledger, run.job.name, PATIENCE):
            summary = write_report(run, join_answers(run), time.monotonic() - started)
            if run.job.cleanup == "after_join" and cleanable(run.ledger.shards(run.job.name)):
                clean_files(run)
            return summary
    finally:
        stop_local_endpoint(run.home)


def settled(run: Run) -> bool:
    """Whether every request has its verdict."""
    return all(shard.settled for shard in run.ledger.shards(run.job.name))


def submit_ready(run: Run, owner: str) -> Exception | None:
    """Submits the shards that may go out now; returns what stopped the first that could not."""
    return first_failure([submit_shard.submit(run, shard, owner) for shard in release(run, time.time())])


def collect_ended(run: Run) -> Exception | None:
    """Fetches and settles the batches that have ended; one that cannot be settled keeps no other from it."""
    fetched = [fetch_files.submit(run, batch) for batch in ended_batches(run.ledger.shards(run.job.name))]
    wait(fetched)
    whole = [future for future in fetched if future.state.is_completed()]
    parsed = [parse_answers(run, future.result(), return_state=True) for future in whole]
    failed = [state.result(raise_on_failure=False) for state in parsed if not state.is_completed()]
    return first_failure(fetched) or next((one for one in failed if isinstance(one, Exception)), None)


def first_failure(futures: list[PrefectFuture[Any]]) -> Exception | None:
    """Waits for task runs; what the first of them raised that failed."""
    results = [future.result(raise_on_failure=False) for future in futures]
    return next((result for result in results if isinstance(result, Exception)), None)
