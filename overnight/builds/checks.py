"""What can be said against a job before anything is sent: by its dataset, its provider, its ledger, its requests."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.answers.lakehouse import check_table
from overnight.errors import MOST_PROBLEMS, DatasetError, HomeError, InvalidRequests, JobError, NoBatchApi, Problem
from overnight.job.job import Job
from overnight.job.profiles import Profile
from overnight.job.prompt import answer_of, definition_of
from overnight.ledger.builder import Build
from overnight.ledger.database import Ledger, ledger_exists
from overnight.ledger.run import Run
from overnight.limits.budget import check_budget
from overnight.providers.dialects import dialect_of
from overnight.rows.dataset import Rows
from overnight.rows.requests import request_source
from overnight.rows.rules import check_lines
from overnight.rows.tables import joined_schema
from overnight.text import did_you_mean


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
    if profile.models and profile.base_url is None and job.model is not None and job.model not in profile.models:
        known = did_you_mean(job.model, profile.models)
        raise JobError(f"{profile.name} has no model {job.model!r}{known}. For another, name its provider, or a "
                       "provider.base_url")  # fmt: skip
    check_budget(job)
    answer = answer_of(job)
    joined = joined_schema(rows.kept, answer, job.output.prefix)
    check_columns(rows)
    check_table(job, joined)
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


def check_files(staging: Path, build: Build, profile: Profile) -> None:
    """Applies the provider's rules to every staged file.

    Raises:
        InvalidRequests: rules are broken; lists every line.
    """
    if problems := staged_problems(staging, build, profile):
        raise InvalidRequests("the provider would refuse these requests; nothing was sent:", problems)


def staged_problems(staging: Path, build: Build, profile: Profile) -> list[Problem]:
    """What a provider would refuse in the staged files."""
    problems: list[Problem] = []
    for shard in build.shards:
        with (staging / shard.file_name).open("rb") as lines:
            found = check_lines(shard.file_name, lines, profile)
            problems += islice(found, MOST_PROBLEMS - len(problems))
        with (staging / shard.file_name).open("rb") as lines:
            problems += islice(_unsayable(shard.file_name, lines, profile), MOST_PROBLEMS - len(problems))
    return problems


def _unsayable(name: str, lines: Iterable[bytes], profile: Profile) -> Iterator[Problem]:
    """What the provider's dialect has no words for: each thing once, where it stands first; all lines may have it."""
    if (refused := dialect_of(profile).refused) is None:
        return
    told = set[str]()
    for number, line in enumerate(lines, 1):
        if (why := refused(line)) is not None and why not in told:
            told.add(why)
            yield Problem(f"{name}:{number}", why)
