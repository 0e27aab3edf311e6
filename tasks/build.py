"""build: rows of the dataset become request files and a map from rows to custom_ids, in a staging folder."""

from __future__ import annotations

import shutil
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.budget import check_budget
from overnight.canary import last_canary
from overnight.dataset import Rows
from overnight.errors import DatasetError, HomeError, InvalidRequests, JobError, LedgerError, NoBatchApi, Problem
from overnight.files import disk_errors
from overnight.home import JobFolder
from overnight.ids import IdSet, Mask, id_hashes
from overnight.job import Job, Raw
from overnight.ledger import Ledger, ledger_exists
from overnight.parquet import TableWriter, write_parquet
from overnight.prompt import answer_of, definition_of, url_of
from overnight.records import Shard
from overnight.requests import Requests, request_source
from overnight.results import result_parts, settled_ids
from overnight.run import Build, Run
from overnight.shards import Kind, ShardWriter
from overnight.tables import ROWS, joined_schema
from overnight.wire import custom_ids
from tasks.parse import restore_parts

_MOST_PROBLEMS = 1000


def check_job(job: Job, rows: Rows) -> None:
    """Checks what a job asks against its provider and its dataset's columns.

    Raises:
        NoBatchApi: the provider does not serve the task's endpoint in batches.
        JobError: a column of the dataset has the name of one to be added, or `report.compare` names none.
    """
    url, profile = url_of(job), job.profile
    if url not in profile.endpoints and not (isinstance(job.task, Raw) and job.task.body is None):
        there = ", ".join(profile.endpoints)
        raise NoBatchApi(f"{profile.name} has no batches for {url}, which task.kind {job.task.kind!r} needs; "
                         f"it has: {there}")  # fmt: skip
    check_budget(job)
    answer = answer_of(job)
    check_columns(joined_schema(rows.schema, answer, job.output.prefix), next(rows.batches()))
    if answer.kind == "embedding" and job.parameters.get("encoding_format") == "base64":
        raise JobError("parameters.encoding_format: base64 cannot be read into a column of floats: leave it out")
    if (compare := job.report.compare) is None:
        return
    if compare not in rows.schema.names:
        raise JobError(f"report.compare names {compare!r}; the columns are: {', '.join(rows.schema.names)}")
    if pa.types.is_nested(rows.schema.field(compare).type) or answer.kind == "embedding":
        raise JobError(f"report.compare: {compare!r} and the answer have to be text or numbers")


def check_columns(schema: pa.Schema, batch: pa.RecordBatch) -> None:
    """Tries what the join will do, on a few rows: a column that cannot be written is better found now.

    Raises:
        DatasetError: names the column.
    """
    for name in batch.schema.names:
        column = batch[name].slice(0, 2)
        try:
            kept = column.filter(pa.array([True] * len(column)))
            pq.write_table(pa.table({name: kept}, schema=pa.schema([schema.field(name)])), pa.BufferOutputStream())
        except pa.ArrowException as error:
            kind = schema.field(name).type
            raise DatasetError(f"column {name!r} ({kind}) cannot be kept in Parquet: {error}; leave it out") from None


def known_requests(job: Job, folder: JobFolder, ledger: Ledger, superseded: set[int]) -> IdSet:
    """The requests that are not to be sent: answered for good, or in a shard that is not settled."""
    known = IdSet()
    shards = ledger.shards(job.name)
    for hashes in settled_ids(result_parts(folder.results, shards), resubmit_lost=job.limits.resubmit_lost):
        known.add(hashes)
    for shard in shards:
        if not shard.settled and shard.id not in superseded:
            known.add_all(custom_ids(request_file(folder, shard)))
    return known


def request_file(folder: JobFolder, shard: Shard) -> Path:
    """A shard's request file.

    Raises:
        LedgerError: it is gone.
    """
    path = folder.requests / shard.file_name
    if not path.exists():
        raise LedgerError(f"{path} is missing, and its requests are under way: restore it from a backup")
    return path


def sent_lines(job: Job, folder: JobFolder) -> IdSet:
    """Hashes of all lines of a batch JSONL file that were ever sent: an id of it has one body for ever."""
    lines = IdSet()
    if _is_raw_file(job):
        for path in sorted(folder.requests.glob("*.jsonl")):
            with path.open("rb") as stream:
                lines.add_all(stream)
    return lines


def _is_raw_file(job: Job) -> bool:
    return isinstance(job.task, Raw) and job.task.body is None


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


def canary_rows(job: Job, ledger: Ledger, superseded: set[int]) -> int | None:
    """How many requests have to be tried before the others; None where a canary of this definition was well."""
    record = ledger.job(job.name)
    if job.limits.canary_rows is None or record is None or record.definition != definition_of(job):
        return job.limits.canary_rows
    canary = last_canary(job, [shard for shard in ledger.shards(job.name) if shard.id not in superseded])
    well = canary is not None and (canary.open or canary.tried) and not canary.fault
    return None if well else job.limits.canary_rows


class Builder:
    """Streams rows into the staging folder."""

    def __init__(
        self, job: Job, staging: Path, known: IdSet, sent: IdSet, round_: int, canary_rows: int | None
    ) -> None:
        self._job, self._staging, self._round, self._sent = job, staging, round_, sent
        self._known, self._seen, self._keys = known, IdSet(), IdSet()
        self._numbers, self._canary_rows = count(), canary_rows
        self._writers: dict[Kind, ShardWriter] = {}
        self._problems: list[Problem] = []
        self._rows = self._unsendable = self._requests = self._skipped = 0

    def build(self, rows: Rows) -> Build:
        """Reads all rows once.

        Raises:
            DatasetError: a key is null or stands twice.
            InvalidRequests: raw requests break rules; all are listed.
        """
        try:
            return self._build(rows)
        finally:
            for writer in self._writers.values():
                writer.discard()

    def _build(self, rows: Rows) -> Build:
        source = request_source(self._job, rows.schema)
        about = {"fingerprint": rows.fingerprint}
        with write_parquet(self._staging / "rows.parquet", ROWS.with_metadata(about)) as table:
            for batch in rows.batches():
                self._check_keys(batch)
                self._take(source(batch, self._rows), batch.num_rows, table)
                if len(self._problems) > _MOST_PROBLEMS:
                    break
        if self._problems:
            raise InvalidRequests(f"{self._job.dataset.path} cannot be sent as it is:", self._problems)
        shards = [shard for writer in self._writers.values() for shard in writer.finish()]
        return Build(self._rows, self._unsendable, self._requests, self._skipped, rows.fingerprint,
                     tuple(sorted(shards, key=lambda shard: shard.number)))  # fmt: skip

    def _take(self, requests: Requests, rows: int, table: TableWriter) -> None:
        self._problems += requests.problems
        ids = requests.ids
        sendable = np.ones(rows, dtype=np.bool_)
        sendable[list(requests.errors)] = False
        hashes = id_hashes(ids)
        new = np.zeros(rows, dtype=np.bool_)
        new[sendable] = self._seen.add(hashes[sendable])
        if _is_raw_file(self._job) and not requests.problems:
            self._refuse(ids, sendable & ~new, "stands twice")
            changed = self._known.contains(hashes) & ~self._sent.contains(id_hashes(requests.lines))
            self._refuse(ids, changed, "was sent with another body before: give it another id, or the job another name")
        fresh = new & ~self._known.contains(hashes)
        self._requests += int(new.sum())
        self._skipped += int(new.sum() - fresh.sum())
        self._unsendable += len(requests.errors)
        self._send(requests, fresh)
        table.write(_row_map(self._rows, ids, requests.errors))
        self._rows += rows

    def _send(self, requests: Requests, fresh: Mask) -> None:
        at = np.flatnonzero(fresh).tolist()
        if isinstance(requests.kinds, Kind):
            self._writer(requests.kinds).write(
                [requests.lines[one] for one in at] if len(at) < len(fresh) else requests.lines
            )
        else:
            for one in at:
                self._writer(requests.kinds[one]).write([requests.lines[one]])

    def _writer(self, kind: Kind) -> ShardWriter:
        if kind not in self._writers:
            first = None if self._writers else self._canary_rows
            self._writers[kind] = ShardWriter(
                self._staging, self._round, self._numbers, self._job.profile, kind, first=first
            )
        return self._writers[kind]

    def _refuse(self, ids: list[str], at: Mask, why: str) -> None:
        for position in np.flatnonzero(at).tolist():
            where = f"{self._job.dataset.path}, request {self._rows + position + 1}"
            self._problems.append(Problem(where, f"custom_id {ids[position]!r} {why}"))

    def _check_keys(self, batch: pa.RecordBatch) -> None:
        if not (key := list(self._job.dataset.key)):
            return
        values = [tuple(row.values()) for row in batch.select(key).to_pylist()]
        new = self._keys.add(id_hashes([repr(value) for value in values]))
        bad = [at for at, value in enumerate(values) if not new[at] or None in value]
        if bad:
            raise DatasetError(
                f"dataset.key ({', '.join(key)}) has to name each row once:",
                [Problem(f"row {self._rows + at + 1}", _key_problem(key, values[at])) for at in bad],
            )


def _key_problem(key: list[str], value: tuple[Any, ...]) -> str:
    shown = ", ".join(f"{name}={part!r}" for name, part in zip(key, value, strict=True))
    return f"{shown} is null" if None in value else f"{shown} stands in an earlier row too"


def _row_map(first: int, ids: list[str], errors: dict[int, tuple[str, str]]) -> pa.RecordBatch:
    codes = [errors[at][0] if at in errors else None for at in range(len(ids))] if errors else None
    messages = [errors[at][1] if at in errors else None for at in range(len(ids))] if errors else None
    sent = [None if at in errors else one for at, one in enumerate(ids)] if errors else ids
    columns = [
        pa.array(np.arange(first, first + len(ids), dtype=np.int64)),
        pa.array(sent, pa.string()),
        pa.nulls(len(ids), pa.string()) if codes is None else pa.array(codes, pa.string()),
        pa.nulls(len(ids), pa.string()) if messages is None else pa.array(messages, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROWS)


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
    known = known_requests(job, folder, ledger, superseded)
    canary = canary_rows(job, ledger, superseded)
    builder = Builder(job, staging, known, sent_lines(job, folder), ledger.next_round(job.name), canary)
    build = builder.build(rows)
    return msgspec.structs.replace(build, superseded=tuple(sorted(superseded)))


def stage(run: Run) -> Build:
    """Builds into the job's staging folder; on an error nothing of it stays."""
    restore_parts(run)
    staging = run.folder.staging
    shutil.rmtree(staging, ignore_errors=True)
    fresh = not run.folder.path.exists()
    try:
        with disk_errors(staging):
            staging.mkdir(parents=True)
            return build_into(staging, run)
    except BaseException:
        shutil.rmtree(run.folder.path if fresh else staging, ignore_errors=True)
        raise


@task(name="build", task_run_name="build", cache_policy=NO_CACHE)
def build_requests(run: Run) -> Build:
    """Renders every row, and stages what is still to be sent."""
    return stage(run)
