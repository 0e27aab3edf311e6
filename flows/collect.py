"""collect_batches: the sweep. One look at every open batch, one step for each that can take one; it ends in seconds.

What it does is idempotent and leaves nothing in memory: run it on a schedule, as often as answers are wanted.
"""

from __future__ import annotations

import logging
import time

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.course import Course
from flows.names import name_sweep
from overnight.errors import JobBusy, OvernightError
from overnight.home import home_path
from overnight.ledger import Ledger, ledger_exists
from overnight.local import serves, stop_local_endpoint
from overnight.queue import submitted_batches
from overnight.run import recorded_run
from overnight.standing import Standing, standing_of

_BUSY_SECONDS = 5.0
_EMBEDDED_SECONDS = 600.0
logger = logging.getLogger("overnight.collect")


@flow(
    name="collect_batches",
    flow_run_name=name_sweep,
    task_runner=ThreadPoolTaskRunner(max_workers=4),  # type: ignore[arg-type]  # Prefect's own; generics do not fit
)
def collect_batches(job: str | None = None, home: str | None = None) -> list[Standing]:
    """Polls, fetches, parses, sends again, releases held shards, and joins what is done.

    Args:
        job: the name of one job; else all jobs of the home.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Returns:
        Where each job stands that was not done before.

    Raises:
        OvernightError: what went wrong with one of the jobs; the others were taken care of.
    """
    folder = home_path(home)
    names = [job] if job else Ledger.of(folder).jobs() if ledger_exists(folder) else []
    standings: list[Standing] = []
    failures: list[Exception] = []
    try:
        for name in names:
            try:
                course = Course(run := recorded_run(name, folder), run.ledger.job(name))
                if not done(course):
                    sweep(course)
                    standings.append(standing_of(course.run))
            except JobBusy as busy:
                logger.info("%s: %s; left to it", name, busy)
            except (OvernightError, OSError) as error:
                failures.append(error)
                if job is None:  # of several, each is told; the first ends the run
                    logger.error("%s: %s", name, error)  # noqa: TRY400 - the message says what to mend
    finally:
        stop_local_endpoint(folder)
    if failures:
        raise failures[0]
    return standings


def done(course: Course) -> bool:
    """Whether a job has nothing left to do: every request is settled, and the joined table holds the answers."""
    record = course.run.ledger.job(course.run.job.name)
    return course.settled and record is not None and record.joined_at is not None


def sweep(course: Course) -> None:
    """One step of a job.

    Raises:
        OvernightError: what stopped it.
    """
    started = time.monotonic()
    if submitted(course):
        course.wait(0.0)
    if serves(course.run.home) and submitted(course):
        course.wait(_EMBEDDED_SECONDS)  # the embedded endpoint ends with this run: it is given the time
    with course.lease(_BUSY_SECONDS) as owner:
        failure = course.collect()
        failure = course.submit(owner) or failure
    if course.settled:
        course.finish(started)
    if failure:
        raise failure


def submitted(course: Course) -> bool:
    """Whether a job has batches to look at."""
    return bool(submitted_batches(course.run.ledger.shards(course.run.job.name)))


if __name__ == "__main__":
    from flows.__main__ import main

    main("collect")
