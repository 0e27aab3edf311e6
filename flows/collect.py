"""collect_batches: the sweep. One look at every open batch, one step for each that can take one; it ends in seconds.

What it does is idempotent and leaves nothing in memory: run it on a schedule, as often as answers are wanted.
"""

from __future__ import annotations

import logging
import time

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import name_sweep
from flows.pipeline import Pipeline
from flows.states import ending_in_words
from overnight.answers.trouble import watched_batches
from overnight.errors import JobBusy, OvernightError
from overnight.ledger.database import Ledger, ledger_exists
from overnight.ledger.run import recorded_run
from overnight.providers.local import serves, stop_local_endpoint
from overnight.reports.status import JobStatus, status_of
from overnight.store.home import home_path

_BUSY_SECONDS = 5.0
"""How long a sweep waits for another process that is at work on a job, before it leaves the job to it."""
_EMBEDDED_SECONDS = 600.0
logger = logging.getLogger("overnight.collect")


@flow(
    name="collect_batches",
    flow_run_name=name_sweep,
    task_runner=ThreadPoolTaskRunner(max_workers=4),  # type: ignore[arg-type]  # Prefect's own; generics do not fit
)
@ending_in_words
def collect_batches(job: str | None = None, home: str | None = None) -> list[JobStatus]:
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
    statuses: list[JobStatus] = []
    failures: list[Exception] = []
    try:
        for name in names:
            try:
                pipeline = Pipeline(run := recorded_run(name, folder), run.ledger.job(name))
                if not done(pipeline):
                    sweep(pipeline)
                    statuses.append(status_of(pipeline.run))
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
    return statuses


def done(pipeline: Pipeline) -> bool:
    """Whether a job has nothing left to do: every request is settled, and the joined table holds the answers."""
    record = pipeline.run.ledger.job(pipeline.run.job.name)
    return pipeline.settled and record is not None and record.joined_at is not None


def sweep(pipeline: Pipeline) -> None:
    """One step of a job.

    Raises:
        OvernightError: what stopped it.
    """
    started = time.monotonic()
    if submitted(pipeline):
        pipeline.wait(0.0)
    if serves(pipeline.run.home) and submitted(pipeline):
        pipeline.wait(_EMBEDDED_SECONDS)  # the embedded endpoint ends with this run: it is given the time
    with pipeline.lease(_BUSY_SECONDS) as owner:
        failure = pipeline.collect()
        failure = pipeline.submit(owner) or failure
        failure = pipeline.rescue(owner) or failure
    record = pipeline.run.ledger.job(pipeline.run.job.name)
    unjoined = record is not None and record.joined_at is None
    if pipeline.settled or (pipeline.stuck and unjoined):
        pipeline.finish(started)
    if failure:
        raise failure


def submitted(pipeline: Pipeline) -> bool:
    """Whether a job has batches to look at: at the provider, lost, or ended and in trouble."""
    return bool(watched_batches(pipeline.run.ledger.shards(pipeline.run.job.name)))
