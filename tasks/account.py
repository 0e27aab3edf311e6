"""account: looks at an account, and clears it up. What the management flows do; not steps of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from overnight.answers.results import part_name
from overnight.errors import JobError, ProviderError, Transient
from overnight.job.job import ProviderChoice
from overnight.ledger.database import Ledger, ledger_exists
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run, recorded_run
from overnight.providers.replies import TERMINAL
from overnight.providers.stored_files import Stored, deletable, known_files, sorted_out
from overnight.reports.diagnosis import diagnosis_text, grouped
from overnight.store.parquet import read_batches
from overnight.text import artifact_key
from tasks.credentials import open_provider

logger = logging.getLogger("overnight.account")


@dataclass(frozen=True)
class ListedBatch:
    """A batch at the provider, and whose it is."""

    batch: str
    status: str
    done: int | None
    failed: int | None
    total: int | None
    created: str
    """UTC, as text."""
    job: str | None
    """The job of this home's ledger that sent it; what its metadata says where the ledger does not know it."""
    file: str | None
    known: bool
    """Whether the ledger knows it."""


@dataclass(frozen=True)
class Cleaned:
    """What a clean-up found, and did."""

    files: int
    """At the provider."""
    ours: int
    orphans: int
    deletable: int
    deleted: int
    bytes: int
    """Of what was deleted, or could be."""


def all_shards(home: Path) -> list[Shard]:
    """The shards of all jobs of a home."""
    if not ledger_exists(home):
        return []
    ledger = Ledger.of(home)
    return [shard for name in ledger.jobs() for shard in ledger.shards(name)]


def when(seconds: float | None) -> str:
    """A time for people, in UTC."""
    return "unknown" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")


@task(name="list", task_run_name="list", cache_policy=NO_CACHE)
def list_account(choice: ProviderChoice, home: Path, limit: int) -> list[ListedBatch]:
    """The newest batches of an account, as the artifact `batches-<profile>` too."""
    ours = {b.batch_id: (s.job, s.file_name) for s in all_shards(home) for b in s.batches if b.batch_id}
    found: list[ListedBatch] = []
    with open_provider(choice, home) as provider:
        for remote in provider.batches():
            job, file = ours.get(remote.id, ((remote.metadata or {}).get("overnight_job"), None))
            found.append(ListedBatch(remote.id, remote.status, remote.done, remote.failed, remote.total,
                                     when(remote.created_at), job, file, remote.id in ours))  # fmt: skip
            if len(found) == limit:
                break
    if found:
        create_table_artifact([vars(one) for one in found], key=artifact_key("batches", choice.profile))
    return found


def find_batches(name: str, home: Path) -> tuple[Run, list[tuple[Shard, Batch]]]:
    """The batches of a job, or one batch by its id.

    Raises:
        JobError: the ledger knows neither.
    """
    shards = all_shards(home)
    matching = [(shard, batch) for shard in shards for batch in shard.batches if name in (shard.job, batch.batch_id)]
    if not matching and ledger_exists(home) and name in Ledger.of(home).jobs():
        return recorded_run(name, home), []
    if not matching:
        raise JobError(f"the ledger of {home} knows no job and no batch named {name!r}: `overnight list` shows batches")
    return recorded_run(matching[0][0].job, home), matching


@task(name="diagnose", task_run_name="diagnose", cache_policy=NO_CACHE)
def diagnose(name: str, home: Path) -> str:
    """What went wrong in a job or a batch, as text and as the artifact `diagnosis-<name>`."""
    run, batches = find_batches(name, home)
    text = diagnosis_text(name, batches, grouped(_results(run, batches)))
    create_markdown_artifact(text, key=artifact_key("diagnosis", name), description=f"diagnosis of {name}")
    return text


def _results(run: Run, batches: list[tuple[Shard, Batch]]) -> Iterator[tuple[str, str, str | None, str | None]]:
    columns = ["custom_id", "verdict", "error_code", "error_message"]
    for shard, batch in batches:
        part = run.folder.results / part_name(shard, batch)
        if part.exists():
            for rows in read_batches(part, columns):
                yield from zip(*(rows[name].to_pylist() for name in columns), strict=True)


@task(name="clean files", task_run_name="clean files", cache_policy=NO_CACHE)
def clean_account(choice: ProviderChoice, home: Path, older_than_hours: float, *, dry_run: bool) -> Cleaned:
    """Deletes our files that nobody needs; only tells of them where `dry_run`."""
    with open_provider(choice, home) as provider:
        files = list(provider.files())  # before the rest: what is uploaded from here on is none of them
        in_use = {b.input_file_id for b in provider.batches() if b.status not in TERMINAL and b.input_file_id}
        stored = sorted_out(files, known_files(all_shards(home)), in_use)
        unneeded = deletable(stored, time.time() - older_than_hours * 3600)
        deleted = 0
        for one in [] if dry_run else unneeded:
            try:
                provider.delete(one.file.id)
            except (Transient, ProviderError) as error:
                logger.warning("file %s (%s) stays: %s", one.file.id, one.file.name, error)
                continue
            deleted += 1
    _show_files(choice, stored, unneeded)
    ours = [one for one in stored if one.use != "foreign"]
    return Cleaned(len(stored), len(ours), sum(one.use == "orphan" for one in stored), len(unneeded), deleted,
                   sum(one.file.bytes or 0 for one in unneeded))  # fmt: skip


def _show_files(choice: ProviderChoice, stored: list[Stored], unneeded: list[Stored]) -> None:
    rows = [
        {"file": one.file.id, "name": one.file.name, "bytes": one.file.bytes, "created": when(one.file.created_at),
         "use": one.use, "job": one.job, "deletable": one in unneeded}
        for one in stored if one.use != "foreign"
    ]  # fmt: skip
    if rows:
        create_table_artifact(rows[:500], key=artifact_key("files", choice.profile))
