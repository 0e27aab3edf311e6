"""run_batch: a job from its dataset to its joined table, in one process.

Killed at any moment and run again, it goes on where it was; a sweep (`collect_batches`) may go on with it too.
"""

from __future__ import annotations

import time
from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.course import PATIENCE, Course, as_result
from flows.names import JobInput, label_run, name_run
from overnight.local import stop_local_endpoint
from overnight.summary import Summary
from tasks.connect import open_job


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
    started, course = time.monotonic(), Course(open_job(job, dataset, home))
    try:
        course.prepare(approve=approve)
        go_on(course)
        return as_result(course.finish(started))
    finally:
        stop_local_endpoint(course.run.home)


def go_on(course: Course) -> None:
    """Takes a course through submit, wait, fetch and parse until every request is settled.

    Raises:
        Exception: what stopped a submission or a collection, once nothing is at the provider any more.
    """
    failure: Exception | None = None
    while not course.settled:
        with course.lease() as owner:
            failure = failure or course.submit(owner)
        label_run(course.run)
        if failure and not course.run.at_provider():
            raise failure
        course.wait(PATIENCE, only_ends=failure is not None)
        with course.lease():
            failure = course.collect() or failure


if __name__ == "__main__":
    from flows.__main__ import main

    main("run")
