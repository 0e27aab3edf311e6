"""submit_batch: a job from its dataset to batches at the provider.

It ends in minutes; `collect_batches` does the rest.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.course import Course
from flows.names import JobInput, label_run, name_run
from overnight.local import stop_local_endpoint
from overnight.standing import Standing, standing_of
from tasks.connect import open_job


@flow(
    name="submit_batch",
    flow_run_name=name_run,
    validate_parameters=False,
    task_runner=ThreadPoolTaskRunner(max_workers=4),  # type: ignore[arg-type]  # Prefect's own; generics do not fit
)
def submit_batch(job: JobInput, dataset: Any = None, home: str | None = None, approve: bool = False) -> Standing:
    """Builds, validates, and submits what the provider's queue takes: build → validate → submit.

    Args:
        job: what to ask of which rows: fill in the form, or name a job file.
        dataset: from Python only: a pandas DataFrame in place of the job's dataset.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.
        approve: send without asking, whatever `limits.approve_above_usd` says.

    Raises:
        OvernightError: the job could not be submitted; says what to mend.
    """
    course = Course(open_job(job, dataset, home))
    try:
        course.prepare(approve=approve)
        with course.lease() as owner:
            failure = course.submit(owner)
        label_run(course.run)
        if failure:
            raise failure
        return standing_of(course.run)
    finally:
        stop_local_endpoint(course.run.home)


if __name__ == "__main__":
    from flows.__main__ import main

    main("submit")
