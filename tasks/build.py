"""build: rows of the dataset become request files and a map from rows to custom_ids, in a staging folder."""

from __future__ import annotations

import shutil
from contextlib import suppress
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.reconcile import restore_parts
from overnight.answers.results import result_parts, settled_ids
from overnight.errors import DatasetError, HomeError, JobError, LedgerError, NoBatchApi
from overnight.job.job import Job
from overnight.job.prompt import answer_of, definition_of
from overnight.ledger.builder import Build, Builder
from overnight.ledger.built_rows import built_map
from overnight.ledger.database import Ledger, ledger_exists
from overnight.ledger.identity import check_folder
from overnight.ledger.request_files import placed_file, request_file
from overnight.ledger.run import Run
from overnight.limits.budget import check_budget, trial_limit
from overnight.limits.canary import last_canary
from overnight.rows.dataset import Rows
from overnight.rows.ids import IdSet
from overnight.rows.lines import custom_ids
from overnight.rows.requests import request_source
from overnight.rows.tables import joined_schema
from overnight.store.files import disk_errors, make_private
from overnight.store.home import JobFolder


def check_job(job: Job, rows: Rows) -> None:
    """Checks what a job asks against its provider and its dataset's columns.

    Raises:
        NoBatchApi: the provider does not serve the task's endpoint in batches.
        JobError: a column of the dataset has the name of one to be added, or `report.compare` names none.
    """
    url, profile = job.task.url, job.profile
    if url not in profile.endpoints and not job.is_request_file:
        there = ", ".join(profile.endpoints)
        raise NoBatchApi(f"{profile.name} has no batches for {url}, which task.kind {job.task.kind!r} needs; "
                         f"it has: {there}")  # fmt: skip
    check_budget(job)
    answer = answer_of(job)
    joined_schema(rows.kept, answer, job.output.prefix)
    check_columns(rows)
    if (compare := job.report.compare) is None:
        return
    if compare not in rows.schema.names:
        raise JobError(f"report.compare names {compare!r}; the columns are: {', '.join(rows.schema.names)}")
    if pa.types.is_nested(rows.kept.field(compare).type) or answer.kind == "embedding":
        raise JobError(f"report.compare: {compare!r} and the answer have to be text or numbers")


def check_columns(rows: Rows) -> None:
    """Tries what the join will do, on a few rows: a column that cannot be written is better found now.

    Raises:
        DatasetError: names the column.
    """
    for field, column in zip(rows.kept, rows.keep(next(rows.batches()).slice(0, 2)), strict=True):
        try:
            kept = column.filter(pa.array([True] * len(column)))
            pq.write_table(pa.table([kept], schema=pa.schema([field])), pa.BufferOutputStream())
        except pa.ArrowException as error:
            raise DatasetError(
                f"column {field.name!r} ({field.type}) cannot be kept in Parquet: {error}; leave it out, or cast it in "
                "a dataset.sql"
            ) from None


def known_ids(job: Job, folder: JobFolder, ledger: Ledger, superseded: set[int]) -> IdSet:
    """The requests that are not to be sent: answered for good, or in a shard that is not settled."""
    known = IdSet()
    shards = ledger.shards(job.name)
    for hashes in settled_ids(result_parts(folder.results, shards), resubmit_lost=job.limits.resubmit_lost):
        known.add(hashes)
    for shard in shards:
        if not shard.settled and shard.id not in superseded:
            known.add_all(custom_ids(request_file(folder, shard, job.profile)))
    return known


def sent_lines(job: Job, folder: JobFolder) -> IdSet:
    """Hashes of all lines of a batch JSONL file that were ever sent: an id of it has one body for ever."""
    lines = IdSet()
    if job.is_request_file:
        for path in sorted(folder.requests.glob("*.jsonl")):
            with path.open("rb") as stream:
                lines.add_all(stream)
    return lines


def superseded_shards(job: Job, ledger: Ledger) -> set[int]:
    """Ids of planned shards that were never sent: they give way to the new build, and to its limits.

    Shards of later attempts and of answers that are asked for again hold on, as long as the definition is the same.
    """
    before = ledger.job(job.name)
    changed = before is not None and before.definition != definition_of(job)
    return {
        shard.id
        for shard in ledger.shards(job.name)
        if not shard.settled and not shard.sent and (changed or (shard.attempt, shard.reask) == (1, 0))
    }


def canary_size(job: Job, ledger: Ledger, superseded: set[int]) -> int | None:
    """How many requests have to be tried before the others; None where a canary of this definition was well."""
    record = ledger.job(job.name)
    if job.limits.canary_rows is None or record is None or record.definition != definition_of(job):
        return job.limits.canary_rows
    canary = last_canary(job, [shard for shard in ledger.shards(job.name) if shard.id not in superseded])
    well = canary is not None and (canary.open or canary.tried) and not canary.fault
    return None if well else job.limits.canary_rows


def check_definition(job: Job, ledger: Ledger) -> None:
    """Refuses to build over open batches of another definition: their paid answers would be for nothing.

    Raises:
        HomeError: the job's name is in use.
    """
    before = ledger.job(job.name)
    if before is None or before.definition == definition_of(job):
        return
    waiting = sum(not shard.settled and shard.sent for shard in ledger.shards(job.name))
    if waiting:
        now = definition_of(job)
        changed = ", ".join(sorted(key for key in now if now[key] != before.definition.get(key)))
        raise HomeError(
            f"the job {job.name!r} has {waiting} open batches with another {changed}: let them finish with the old job "
            "file, give this job another name, or use another --home"
        )


def check_run(run: Run) -> Rows:
    """Everything that can be said against a run before its rows are read; returns them."""
    rows = run.rows()
    check_job(run.job, rows)
    request_source(run.job, rows.schema)
    if ledger_exists(run.home):
        check_definition(run.job, run.ledger)
    return rows


def build_into(staging: Path, run: Run) -> Build:
    """Builds into an empty folder; nothing else is written, and nobody is asked."""
    job, folder, ledger = run.job, run.folder, run.ledger
    rows = check_run(run)
    superseded = superseded_shards(job, ledger)
    known = known_ids(job, folder, ledger, superseded)
    canary = canary_size(job, ledger, superseded)
    trial = trial_limit(job, ledger.shards(job.name))
    builder = Builder(job, staging, known, sent_lines(job, folder), ledger.next_round(job.name), canary, trial)
    build = builder.build(rows)
    return msgspec.structs.replace(build, superseded=tuple(sorted(superseded)))


def stage(run: Run) -> Build:
    """Builds into the job's staging folder; on an error nothing of it stays.

    Raises:
        LedgerError: the folder was written by another ledger, or by a later state of it.
    """
    check_folder(run)
    restore_parts(run)
    for shard in run.ledger.shards(run.job.name):
        if not shard.settled:  # what the build before planned may stand in the staging folder still
            placed_file(run.folder, shard, run.job.profile)
    if (record := run.ledger.job(run.job.name)) is not None:
        with suppress(LedgerError):  # the same of the map of rows; one that is gone is made anew
            built_map(run, record)
    staging = run.folder.staging
    shutil.rmtree(staging, ignore_errors=True)
    fresh = not run.folder.path.exists()
    try:
        with disk_errors(staging):
            make_private(staging)
            return build_into(staging, run)
    except BaseException:
        shutil.rmtree(run.folder.path if fresh else staging, ignore_errors=True)
        raise


@task(name="build", task_run_name="build", cache_policy=NO_CACHE)
def build_requests(run: Run) -> Build:
    """Renders every row, and stages what is still to be sent."""
    return stage(run)
