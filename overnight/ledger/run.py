"""A run: a job at home, and what its build made. What the steps hand each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from overnight.errors import JobError
from overnight.job.job import Job
from overnight.job.jobfile import load_job
from overnight.job.prompt import answer_of
from overnight.job.variants import variant_jobs
from overnight.ledger.database import Ledger, ledger_exists
from overnight.ledger.records import Shard
from overnight.ledger.states import State
from overnight.rows.dataset import Rows, first_rows, open_dataset
from overnight.rows.frames import save_frame
from overnight.store.home import JobFolder, home_path
from overnight.store.objects import address
from overnight.text import did_you_mean


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

    def at_provider(self) -> bool:
        """Whether any batch is known to be at the provider."""
        batches = [shard.open_batch for shard in self.ledger.shards(self.job.name) if not shard.settled]
        return any(batch is not None and batch.state is State.SUBMITTED for batch in batches)

    def variants(self) -> dict[str, Run]:
        """The runs that a job with `models` or `variants` stands for, by their labels; empty for a plain job.

        Raises:
            JobError: a variant is no valid job.
        """
        return {label: replace(self, job=job) for label, job in variant_jobs(self.job).items()}

    def rows(self) -> Rows:
        """The job's dataset, as far as `limits.max_rows`; a batch JSONL file comes as its lines."""
        rows = open_dataset(self.job.dataset, request_lines=self.job.is_request_file)
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
        dataset: a table (pandas, polars, Arrow) in place of the job's dataset; kept in the job's folder.
        home: the folder of runs, or the URL of one on an object store; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        JobError: the job is not valid.
        HomeError: the home cannot be written to.
        DatasetError: `dataset` is no table with rows and columns that Parquet can hold.
    """
    read = load_job(job)
    folder = JobFolder(home_path(home), read.name)
    if dataset is not None:
        save_frame(dataset, folder.frame)
        read = read.model_copy(update={"dataset": read.dataset.model_copy(update={"path": address(folder.frame)})})
    return Run(read, folder.home)


def recorded_run(name: str, home: str | Path | None = None) -> Run:
    """A job as the ledger has it, from its last build.

    Raises:
        JobError: no job of this name was built in the home.
    """
    path = home_path(home)
    ledger = Ledger.of(path)
    if (record := ledger.job(name)) is None:
        raise JobError(f"no job {name!r} was built in {address(path)}{did_you_mean(name, ledger.jobs())}")
    return Run(load_job(record.job), path)


def self_contained(job: Job) -> Job:
    """The job as a sweep can take it up from any folder: paths absolute, an answer's schema read in.

    Raises:
        JobError: the schema cannot be read.
    """
    changes: dict[str, Any] = {}
    if (job.dataset.path or job.dataset.sql) and "://" not in job.dataset.path:
        changes["dataset"] = job.dataset.model_copy(update={"path": str(Path(job.dataset.path).absolute())})
    if isinstance(getattr(job.task, "output_schema", None), str):
        changes["task"] = job.task.model_copy(update={"output_schema": answer_of(job).schema})
    if (given := job.output.table) is not None and given.format == "delta" and "://" not in given.uri:
        table = given.model_copy(update={"uri": str(Path(given.uri).absolute())})
        changes["output"] = job.output.model_copy(update={"table": table})
    return job.model_copy(update=changes)


def all_shards(home: Path) -> list[Shard]:
    """The shards of all jobs of a home."""
    if not ledger_exists(home):
        return []
    ledger = Ledger.of(home)
    return [shard for name in ledger.jobs() for shard in ledger.shards(name)]
