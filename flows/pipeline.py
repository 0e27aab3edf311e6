"""The pipeline: a job's way through its steps, which flows share.

Killed between any two of them, the next flow goes on from there.
"""

from __future__ import annotations

import inspect
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ParamSpec, Self, TypeVar

from prefect import Flow, allow_failure, flow
from prefect.futures import wait
from prefect.task_runners import ThreadPoolTaskRunner

from flows.approval import ask_approval, covers, needs_approval
from flows.names import label_run, name_run, tag_run
from flows.progress import publish_progress
from flows.states import ending_in_words
from overnight.answers.trouble import is_stuck
from overnight.errors import JobError
from overnight.ledger.identity import check_folder
from overnight.ledger.lease import leased
from overnight.ledger.records import JobRecord, Shard
from overnight.ledger.run import Run
from overnight.limits.queue import ended_batches
from overnight.providers.local import stop_local_endpoint
from overnight.reports.dry_run import plan_of
from overnight.reports.plan import Plan
from overnight.reports.summary import Summary
from overnight.store.objects import is_shared
from overnight.text import dollars
from tasks.build import build_requests
from tasks.cancel import cancel_batches, stop_sending
from tasks.clean import clean_job, cleanable
from tasks.commit import commit_rows
from tasks.fetch import fetch_files
from tasks.join import join_answers
from tasks.parse import parse_answers
from tasks.plan import publish_plan
from tasks.report import announce, write_report
from tasks.rescue import admit_to_rescue, rescue_shards
from tasks.submit import admit, submit_shards
from tasks.sweep import sweep_leftovers
from tasks.validate import validate_requests
from tasks.wait import wait_for_batches

logger = logging.getLogger("overnight.approval")
PATIENCE = 3600.0
"""Seconds to wait for another process that is at work on the job, and for one `wait` task run."""
_MOST_TASK_RUNS = 20
"""Of one step at a time: more make a graph that nobody can read."""
_WORKERS = 4
"""Calls to a provider at once: Prefect's own default is without bound."""
Item = TypeVar("Item")
P = ParamSpec("P")
R = TypeVar("R")


def in_groups(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """Items as at most twenty groups of neighbours: one task run each, so that the page's graph stays readable."""
    size = -(-len(items) // _MOST_TASK_RUNS)
    return [tuple(items[at : at + size]) for at in range(0, len(items), size)] if items else []


def job_flow(name: str) -> Callable[[Callable[P, R]], Flow[P, R]]:
    """The decorator of a flow that takes a job through its steps.

    Parameters are not validated by Prefect: it would copy a DataFrame, and word a job's mistakes without their lines.
    Those that only Python can give (`Any`) are not in the form that a deployment's page makes of them.
    """
    decorate = flow(
        name=name,
        flow_run_name=name_run,
        validate_parameters=False,
        task_runner=ThreadPoolTaskRunner(max_workers=_WORKERS),  # type: ignore[arg-type]  # Prefect's own; generics
    )

    def made(fn: Callable[P, R]) -> Flow[P, R]:
        decorated = decorate(ending_in_words(fn))
        signature = inspect.signature(fn, eval_str=True)
        fillable = [one for one in signature.parameters.values() if one.annotation is not Any]
        shown = signature.replace(parameters=fillable)
        decorated.__signature__ = shown  # type: ignore[attr-defined]  # what inspect, and so Prefect's form, goes by
        return decorated

    return made


class Pipeline:
    """A job's way through its steps; on the page each is drawn behind the one before.

    As a context it stops the embedded endpoint, where it was started for the job.
    """

    def __init__(self, run: Run, built: JobRecord | None = None) -> None:
        """Begins a pipeline.

        Args:
            run: the job.
            built: as the ledger has it, where it was built before.
        """
        self.run = run
        self._built = built
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        tag_run(self.run)
        return self

    def __exit__(self, *_: object) -> None:
        stop_local_endpoint(self.run.home)

    @property
    def _after(self) -> list[Any]:
        """What the next task run is drawn behind; a failure before it does not keep it from running."""
        return [allow_failure(one) for one in self._before]

    @property
    def settled(self) -> bool:
        """Whether every request has its verdict, or will get none."""
        return all(shard.settled for shard in self.run.ledger.shards(self.run.job.name))

    @property
    def stuck(self) -> bool:
        """Whether only batches in trouble are left, so that what there is can be joined meanwhile."""
        return is_stuck(self.run.ledger.shards(self.run.job.name), time.time())

    @contextmanager
    def lease(self, patience: float = PATIENCE, *, checked: bool = True) -> Iterator[str]:
        """Holds the job's lease, without which no step is taken; yields the owner.

        Args:
            patience: seconds to wait for another process.
            checked: whether folder and ledger have to belong together.

        Raises:
            JobBusy: another process holds it still.
            LedgerError: the folder was written by another ledger, or by a later state of it.
            JobError: another process built the job anew with other settings: its answers are not ours to read.
        """
        name = self.run.job.name
        with leased(self.run.ledger, name, patience) as owner:
            if checked:
                check_folder(self.run)
            record = self.run.ledger.job(name)
            if self._built is not None and record is not None and record.job != self._built.job:
                raise JobError(f"the job {name!r} was built anew with other settings by another process: left to that")
            yield owner

    def prepare(self, *, approve: bool, approved: Plan | None = None) -> None:
        """Takes the job through build and validate; between them asks whether to go on, where the job wants it.

        A person who is asked may lower the number of rows; the pipeline is one over fewer rows then.

        Args:
            approve: go on without the question.
            approved: a plan that a person said yes to: good for what costs no more.

        Raises:
            JobError: the person said no; nothing was sent.
        """
        with self.lease():
            build = build_requests(self.run)
            made = plan_of(self.run, build, self.run.folder.staging)
            publish_plan(made)
            if approve or not needs_approval(self.run.job, made) or (approved and covers(approved, made)):
                state = validate_requests(self.run, build, return_state=True)
                state.result()
                self._before = [state]
                self._built = self.run.ledger.job(self.run.job.name)
                label_run(self.run)
                return
            shutil.rmtree(self.run.folder.staging)  # the answer may take hours: what it is about is built anew then
        logger.info("%s waits for approval of %s: answer on the run's page", made.job, dollars(made.cost_usd))
        answer = ask_approval(made)
        if answer.decision == "reject":
            why = f": {answer.note}" if answer.note else ""
            raise JobError(f"the run was rejected{why}; nothing was sent")
        self.run = self.run.with_max_rows(answer.max_rows) if answer.max_rows else self.run
        self.prepare(approve=False, approved=made)

    def submit(self, owner: str) -> Exception | None:
        """Submits the shards that may go out now; returns what stopped the first that could not."""
        return self._send(admit(self.run, time.time()), owner)

    def _send(self, shards: Sequence[Shard], owner: str) -> Exception | None:
        futures = [
            submit_shards.submit(self.run, group, owner, wait_for=self._after, return_state=False)
            for group in in_groups(shards)
        ]
        failure = first_exception([future.result(raise_on_failure=False) for future in futures])  # all have ended then
        self._before = [*futures] or self._before
        publish_progress(self.run)
        return failure

    def rescue(self, owner: str) -> Exception | None:
        """Asks in real time for what is due; returns what kept the rest from it."""
        if not (shards := admit_to_rescue(self.run, time.time())):
            return None
        state = rescue_shards(self.run, tuple(shards), owner, wait_for=self._after, return_state=True)
        self._before = [state]
        publish_progress(self.run)
        return first_exception([state.result(raise_on_failure=False)])

    def wait(self, patience: float, *, only_ends: bool = False) -> None:
        """Looks at open batches until one has ended or, unless `only_ends`, a shard may go; once in any case.

        Args:
            patience: seconds, at the most.
            only_ends: whatever could be submitted meanwhile.
        """
        state = wait_for_batches(self.run, patience, only_ends, wait_for=self._after, return_state=True)
        state.result()
        self._before = [state]

    def collect(self) -> Exception | None:
        """Fetches and settles the batches that have ended; one that cannot be settled keeps no other from it."""
        groups = in_groups(ended_batches(self.run.ledger.shards(self.run.job.name), time.time()))
        fetched = [fetch_files.submit(self.run, group, wait_for=self._after, return_state=False) for group in groups]
        wait(fetched)
        whole = [future for future in fetched if future.state.is_completed()]
        parsed = []
        if files := tuple(one for future in whole for one in future.result()):
            parsed = [parse_answers(self.run, files, wait_for=whole, return_state=True)]
        self._before = [*parsed] or self._before
        publish_progress(self.run)
        results = [*(future.result(raise_on_failure=False) for future in fetched),
                   *(state.result(raise_on_failure=False) for state in parsed)]  # fmt: skip
        return first_exception(results)

    def cancel(self, owner: str) -> None:
        """Sends nothing more, and asks the provider to cancel what is open.

        A create whose reply was lost is looked for first: what it made is cancelled, and nothing is created again.

        Raises:
            ProviderError: the provider refuses to be asked.
        """
        if (lost := stop_sending(self.run)) and (failure := self._send(lost, owner)):
            raise failure
        if failure := self.rescue(owner):  # what was begun in real time ends with what it has
            raise failure
        state = cancel_batches(self.run, wait_for=self._after, return_state=True)
        state.result()
        self._before = [state]

    def finish(self, started: float) -> Summary:
        """Takes the job through join, report and clean, and emits the event that other automations wait for.

        Args:
            started: when the flow began, as `time.monotonic` had it.
        """
        with self.lease():
            tally = join_answers(self.run, wait_for=self._after)
            if self.run.job.output.table is not None:
                commit_rows(self.run, tally, wait_for=self._after)
            summary = write_report(self.run, tally, time.monotonic() - started)
            if self.run.job.cleanup == "after_join" and cleanable(self.run.ledger.shards(self.run.job.name)):
                clean_job(self.run, wait_for=[summary])
            if is_shared(self.run.home):
                sweep_leftovers(self.run, wait_for=[summary])
        announce(summary)
        return summary


def first_exception(results: Sequence[Any]) -> Exception | None:
    """The first exception among some results."""
    return next((result for result in results if isinstance(result, Exception)), None)
