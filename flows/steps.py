"""What the flows that work on a job share, step by step. Killed between any two, the next flow goes on from there."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar, cast

from prefect.futures import PrefectFuture, wait
from prefect.states import Failed

from flows.names import label_run
from overnight.errors import JobError
from overnight.lease import leased
from overnight.queue import ended_batches
from overnight.run import Run
from overnight.summary import Summary
from tasks.approve import ask_approval, needs_approval
from tasks.build import build_requests
from tasks.clean import clean_job, cleanable
from tasks.connect import in_deployment
from tasks.fetch import fetch_files
from tasks.join import join_answers
from tasks.parse import parse_answers
from tasks.plan import plan_of, publish_plan
from tasks.progress import publish_progress
from tasks.report import announce, write_report
from tasks.submit import release, submit_shards
from tasks.validate import validate_requests

PATIENCE = 3600.0
"""Seconds to wait for another process that is at work on the job, and for one `wait` task run."""
_MOST_TASK_RUNS = 20
Item = TypeVar("Item")


def in_groups(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """Items as at most twenty groups of neighbours: one task run each, so that the page's graph stays readable."""
    size = -(-len(items) // _MOST_TASK_RUNS)
    return [tuple(items[at : at + size]) for at in range(0, len(items), size)] if items else []


def prepare(run: Run, *, approve: bool) -> Run:
    """Build → validate, and between them the question whether to go on, where the job asks for one.

    Args:
        run: what to prepare.
        approve: go on without the question.

    Returns:
        The run; with fewer rows where the person who was asked lowered their number.

    Raises:
        JobError: the person said no; nothing was sent.
    """
    with leased(run.ledger, run.job.name, PATIENCE):
        build = build_requests(run)
        made = plan_of(run, build, run.folder.staging)
        publish_plan(made)
        if approve or not needs_approval(run.job, made):
            validate_requests(run, build)
            label_run(run)
            return run
        shutil.rmtree(run.folder.staging)  # the answer may take hours: what it is about is built anew then
    answer = ask_approval(made)
    if answer.decision == "reject":
        why = f": {answer.note}" if answer.note else ""
        raise JobError(f"the run was rejected on Prefect's page{why}; nothing was sent")
    approved = run.with_max_rows(answer.max_rows) if answer.max_rows else run
    return prepare(approved, approve=True)


def settled(run: Run) -> bool:
    """Whether every request has its verdict, or will get none."""
    return all(shard.settled for shard in run.ledger.shards(run.job.name))


def submit_ready(run: Run, owner: str) -> Exception | None:
    """Submits the shards that may go out now; returns what stopped the first that could not."""
    groups = in_groups(release(run, time.time()))
    failure = first_failure([submit_shards.submit(run, group, owner) for group in groups])
    publish_progress(run)
    return failure


def collect_ended(run: Run) -> Exception | None:
    """Fetches and settles the batches that have ended; one that cannot be settled keeps no other from it."""
    groups = in_groups(ended_batches(run.ledger.shards(run.job.name)))
    fetched = [fetch_files.submit(run, group) for group in groups]
    wait(fetched)
    whole = [future.result() for future in fetched if future.state.is_completed()]
    parsed = [parse_answers(run, group, return_state=True) for group in whole]
    publish_progress(run)
    return first_failure(fetched) or first_exception(state.result(raise_on_failure=False) for state in parsed)


def finish(run: Run, started: float) -> Summary:
    """Join → report → clean, and the event that tells other automations.

    Args:
        run: whose requests are settled.
        started: of the run, as `time.monotonic` had it.
    """
    with leased(run.ledger, run.job.name, PATIENCE):
        summary = write_report(run, join_answers(run), time.monotonic() - started)
        if run.job.cleanup == "after_join" and cleanable(run.ledger.shards(run.job.name)):
            clean_job(run)
    announce(summary)
    return summary


def as_result(summary: Summary) -> Summary:
    """A summary as a flow returns it: a deployment's run fails where too many rows did, so that alerts see it."""
    if summary.within_bounds or not in_deployment():
        return summary
    return cast(Summary, Failed(message=summary.outcome, data=summary))


def first_failure(futures: list[PrefectFuture[Any]]) -> Exception | None:
    """Waits for task runs; what the first of them raised that failed."""
    return first_exception(future.result(raise_on_failure=False) for future in futures)


def first_exception(results: Iterable[Any]) -> Exception | None:
    """The first exception among some results."""
    return next((result for result in results if isinstance(result, Exception)), None)
