"""cancel_batch: ends a job. Open batches are cancelled, what they answered is kept and joined, nothing more is sent."""

from __future__ import annotations

import time

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.course import Course
from flows.names import JobInput, name_run
from overnight.local import stop_local_endpoint
from overnight.standing import Standing, standing_of
from tasks.connect import find_job

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
    started, course = time.monotonic(), Course(find_job(job, home))
    until = started + _CANCELLING_SECONDS
    try:
        with course.lease() as owner:
            course.cancel(owner)
        while not course.settled and time.monotonic() < until:
            course.wait(until - time.monotonic())
            with course.lease() as owner:
                failure = course.collect()
                if not course.settled:
                    course.cancel(owner)  # a create whose reply was lost shows up late
            if failure:
                raise failure
        if course.settled:
            course.finish(started)
        return standing_of(course.run)
    finally:
        stop_local_endpoint(course.run.home)


if __name__ == "__main__":
    from flows.__main__ import main

    main("cancel")
