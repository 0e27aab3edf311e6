"""Builds a job's requests into a staging folder: all of its rows, less what is answered or on its way."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import msgspec

from overnight.answers.reconcile import restore_parts
from overnight.answers.results import result_parts, settled_ids
from overnight.builds.checks import check_run
from overnight.builds.pieces import Pieces
from overnight.errors import LedgerError
from overnight.job.job import Job
from overnight.job.prompt import definition_of
from overnight.ledger.builder import Build, Builder
from overnight.ledger.built_rows import built_map
from overnight.ledger.database import Ledger
from overnight.ledger.identity import check_folder
from overnight.ledger.records import Shard
from overnight.ledger.request_files import placed_file, request_file
from overnight.ledger.run import Run
from overnight.limits.budget import trial_limit
from overnight.limits.canary import last_canary
from overnight.rows.ids import IdSet
from overnight.rows.lines import custom_ids
from overnight.store.files import disk_errors, make_private
from overnight.store.home import JobFolder


def build_into(staging: Path, run: Run) -> Build:
    """Builds into an empty folder; nothing else is written, and nobody is asked."""
    job, folder, ledger = run.job, run.folder, run.ledger
    rows = check_run(run)
    superseded = superseded_shards(job, ledger)
    known = known_ids(job, folder, ledger, superseded)
    canary, shards = canary_size(job, ledger, superseded), ledger.shards(job.name)
    sent, trial = sent_lines(job, folder, shards), trial_limit(job, shards)
    builder = Builder(job, staging, known, sent, ledger.next_round(job.name), canary, trial)
    pieces = Pieces(run, rows, staging, known)
    build = builder.build(pieces, rows.fingerprint, pieces.note)
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


def sent_lines(job: Job, folder: JobFolder, shards: Sequence[Shard]) -> IdSet:
    """Hashes of all lines of a batch JSONL file that were ever sent: an id of it has one body for ever."""
    lines = IdSet()
    if job.is_request_file:
        for path in filter(None, (placed_file(folder, shard, job.profile) for shard in shards)):
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
