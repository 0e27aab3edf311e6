"""One dataset, several models: a flow run for each variant of a job, all at once, and their answers side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextvars import copy_context
from functools import partial
from typing import Any, TypeVar

from flows.approval import ask_approval, needs_approval
from overnight.errors import JobError
from overnight.ledger.run import Run
from overnight.providers.local import kept_running
from overnight.reports.dry_run import plan_job
from overnight.reports.status import JobStatus, together
from overnight.reports.summary import Summary
from overnight.store.objects import address
from tasks.combine import check_name, combine_variants

R = TypeVar("R")


def run_variants(run: Run, run_one: Callable[..., Any], *, approve: bool) -> Summary:
    """Runs all variants, each in a flow run of its own, and joins their answers to one table.

    Where one fails, the others go on to their end; the next run goes on with what is lacking.

    Args:
        run: a job with variants.
        run_one: `run_batch`.
        approve: whether to send without asking.

    Raises:
        Exception: what stopped the first that failed; nothing is combined then.
    """
    started = time.monotonic()
    check_name(run)
    runs = run.variants()
    if not approve:
        for one in runs.values():
            _approve(one)
    found = for_all(runs, run, lambda one: run_one(one.job, home=address(one.home), approve=True, return_state=True))
    results = {label: state.result(raise_on_failure=False) for label, state in found.items()}
    if failure := next((one for one in results.values() if isinstance(one, Exception)), None):
        raise failure
    return combine_variants(run, results, runs, time.monotonic() - started)


def submit_variants(run: Run, submit_one: Callable[..., Any], *, approve: bool) -> JobStatus:
    """Submits all variants; the sweep collects each, and a run then writes the table of all.

    Args:
        run: a job with variants.
        submit_one: `submit_batch`.
        approve: whether to send without asking.

    Raises:
        Exception: what stopped the first that failed.
    """
    check_name(run)
    runs = run.variants()
    if not approve:
        for one in runs.values():
            _approve(one)
    return together(
        run.job.name, for_all(runs, run, lambda one: submit_one(one.job, None, address(one.home), True)).values()
    )


def cancel_variants(run: Run, cancel_one: Callable[..., Any]) -> JobStatus:
    """Cancels all variants that were built; what they answered is joined, each by itself.

    Args:
        run: a job with variants.
        cancel_one: `cancel_batch`.

    Raises:
        JobError: none of them was built.
        Exception: what stopped the first that failed.
    """
    built = {label: one for label, one in run.variants().items() if run.ledger.job(one.job.name) is not None}
    if not built:
        raise JobError(f"no variant of {run.job.name} was built in {run.home}")
    found = for_all(built, run, lambda one: cancel_one(one.job.name, address(one.home)))
    return together(run.job.name, found.values())


def for_all(runs: Mapping[str, Run], run: Run, act: Callable[[Run], R]) -> dict[str, R]:
    """Does the same for all variants at once; the embedded endpoint serves until the last is done.

    On daemon threads: an executor waits for its own, and Ctrl-C would wait for the provider.
    """
    futures: dict[str, Future[R]] = {label: Future() for label in runs}
    with kept_running(run.home):
        for label, one in runs.items():
            work = partial(copy_context().run, _settle, futures[label], act, one)
            threading.Thread(target=work, name=one.job.name, daemon=True).start()
        return {label: future.result() for label, future in futures.items()}


def _settle(future: Future[R], act: Callable[[Run], R], run: Run) -> None:
    try:
        future.set_result(act(run))
    except BaseException as error:  # noqa: BLE001 - raised again by who asks for the result
        future.set_exception(error)


def _approve(run: Run) -> None:
    if run.job.limits.approve_above_usd is None or not needs_approval(run.job, made := plan_job(run)):
        return
    answer = ask_approval(made)
    if answer.decision == "reject" or answer.max_rows:
        why = "a variant takes all rows or none: set limits.max_rows" if answer.max_rows else "nothing was sent"
        raise JobError(f"the run was rejected; {why}")
