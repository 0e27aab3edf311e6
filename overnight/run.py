"""A run: a job at home, and what its build made. What the steps hand each other."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from overnight.dataset import Rows, first_rows, open_dataset, save_frame
from overnight.errors import JobError
from overnight.home import JobFolder, home_path
from overnight.job import Job, Raw
from overnight.jobfile import load_job
from overnight.ledger import Ledger
from overnight.prompt import answer_of
from overnight.queue import Budget
from overnight.records import NewShard, Shard
from overnight.states import State
from overnight.suggest import did_you_mean


@dataclass(frozen=True)
class Run:
    """A job and where its files lie."""

    job: Job
    home: Path

    @property
    def folder(self) -> JobFolder:
        """The job's files."""
        return JobFolder(self.home, self.job.name)

    @property
    def ledger(self) -> Ledger:
        """The home's ledger."""
        return Ledger.of(self.home)

    def budgets(self, shards: Sequence[Shard]) -> dict[str, Budget]:
        """The token queues of the models of some shards: what the job and the provider's refusals say of them."""
        profile, ledger = self.job.profile, self.ledger
        budgets = {}
        for model in {shard.model for shard in shards if not shard.settled}:
            limits = [profile.max_enqueued_tokens, ledger.learned_limit(profile.queue, model, time.time())]
            limit = min((one for one in limits if one is not None), default=None)
            budgets[model] = Budget(limit, ledger.enqueued(profile.queue, model))
        return budgets

    def at_provider(self) -> bool:
        """Whether any batch is known to be at the provider, or has ended, whose answers are not collected."""
        batches = [shard.open_batch for shard in self.ledger.shards(self.job.name) if not shard.settled]
        return any(batch is not None and batch.state in (State.SUBMITTED, State.ENDED) for batch in batches)

    def rows(self) -> Rows:
        """The job's dataset, as far as `limits.max_rows`; a batch JSONL file comes as its lines."""
        rows = open_dataset(
            self.job.dataset, request_lines=isinstance(self.job.task, Raw) and self.job.task.body is None
        )
        most = self.job.limits.max_rows
        return rows if most is None else first_rows(rows, most)

    def with_max_rows(self, count: int) -> Run:
        """The same run over the first rows only."""
        most = min(count, self.job.limits.max_rows or count)
        limits = self.job.limits.model_copy(update={"max_rows": most})
        return replace(self, job=self.job.model_copy(update={"limits": limits}))


def open_run(job: Job | Mapping[str, Any] | Path | str, dataset: Any = None, home: str | None = None) -> Run:
    """Reads a job, and finds its home.

    Args:
        job: a `Job`, its fields, or the path of its file.
        dataset: a pandas DataFrame in place of the job's dataset; kept in the job's folder.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        JobError: the job is not valid.
        HomeError: the home cannot be written to.
        DatasetError: `dataset` is no DataFrame with rows and columns that Parquet can hold.
    """
    read = load_job(job)
    folder = JobFolder(home_path(home), read.name)
    if dataset is not None:
        save_frame(dataset, folder.frame)
        read = read.model_copy(update={"dataset": read.dataset.model_copy(update={"path": str(folder.frame)})})
    return Run(read, folder.home)


def recorded_run(name: str, home: str | Path | None = None) -> Run:
    """A job as the ledger has it, from its last build.

    Raises:
        JobError: no job of this name was built in the home.
    """
    path = home_path(home)
    ledger = Ledger.of(path)
    if (record := ledger.job(name)) is None:
        raise JobError(f"no job {name!r} was built in {path}{did_you_mean(name, ledger.jobs())}")
    return Run(load_job(record.job), path)


def self_contained(job: Job) -> Job:
    """The job as a sweep can take it up from any folder: paths absolute, an answer's schema read in.

    Raises:
        JobError: the schema cannot be read.
    """
    changes: dict[str, Any] = {}
    if job.dataset.path and "://" not in job.dataset.path:
        changes["dataset"] = job.dataset.model_copy(update={"path": str(Path(job.dataset.path).absolute())})
    if isinstance(getattr(job.task, "output_schema", None), str):
        changes["task"] = job.task.model_copy(update={"output_schema": answer_of(job).schema})
    return job.model_copy(update=changes)


class Build(msgspec.Struct, frozen=True):
    """What a build made.

    A struct, which Prefect does not look into: it would draw an arrow from the build to every task run that takes one
    of the strings in it.
    """

    rows: int
    unsendable: int
    """Rows without a request: a null where text is needed, or too large."""
    requests: int
    """Distinct requests of the dataset."""
    known: int
    """Of those: answered before, or on their way."""
    fingerprint: str
    """Of the dataset that was read."""
    shards: tuple[NewShard, ...]
    """What is still to be sent, staged."""
    superseded: tuple[int, ...] = ()
    """Ids of planned shards of an earlier definition that were never sent: they give way."""
