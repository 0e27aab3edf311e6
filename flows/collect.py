"""collect_batches: the sweep. One look at every open batch, one step for each that can take one; it ends in seconds.

What it does is idempotent and leaves nothing in memory: run it on a schedule, as often as answers are wanted.
"""

from __future__ import annotations

import logging
import time

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import name_sweep
from flows.steps import collect_ended, finish, settled, submit_ready
from overnight.errors import JobBusy, OvernightError
from overnight.home import home_path
from overnight.lease import leased
from overnight.ledger import Ledger, ledger_exists
from overnight.local import serves, stop_local_endpoint
from overnight.queue import submitted_batches
from overnight.run import Run, recorded_run
from overnight.standing import Standing, standing_of
from tasks.wait import wait_for_batches

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
    open_runs = [run for run in (recorded_run(name, folder) for name in names) if not done(run)]
    failures: list[OvernightError] = []
    try:
        for run in open_runs:
            try:
                sweep(run)
            except JobBusy as busy:
                logger.info("%s: %s; left to it", run.job.name, busy)
            except OvernightError as error:
                logger.error("%s: %s", run.job.name, error)  # noqa: TRY400 - the message says what to mend
                failures.append(error)
    finally:
        stop_local_endpoint(folder)
    if failures:
        raise failures[0]
    return [standing_of(run) for run in open_runs]


def done(run: Run) -> bool:
    """Whether a job has nothing left to do: every request is settled, and the joined table holds the answers."""
    record = run.ledger.job(run.job.name)
    return settled(run) and record is not None and record.joined_at is not None


def sweep(run: Run) -> None:
    """One step of a job.

    Raises:
        OvernightError: what stopped it.
    """
    started, failure = time.monotonic(), None
    if submitted_batches(run.ledger.shards(run.job.name)):
        wait_for_batches(run, 0.0)
        if serves(run.home) and submitted_batches(run.ledger.shards(run.job.name)):
            wait_for_batches(run, _EMBEDDED_SECONDS)
    with leased(run.ledger, run.job.name, _BUSY_SECONDS) as owner:
        failure = collect_ended(run)
        failure = submit_ready(run, owner) or failure
    if settled(run):
        finish(run, started)
    if failure:
        raise failure


if __name__ == "__main__":
    from flows.__main__ import main

    main("collect")
