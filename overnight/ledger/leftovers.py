"""What killed processes left in a home on an object store: files of builds that were never planned."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from overnight.ledger.request_files import request_path
from overnight.ledger.run import Run
from overnight.store.objects import objects_of

KEPT_DAYS = 7
"""How old a leftover gets: longer than any build takes, and than the clocks of machines are apart."""


def leftovers(run: Run, now: datetime | None = None) -> list[Path]:
    """Request files and maps of rows that the ledger does not name, and no build may be about to plan.

    Responses and results are none: the ledger named their batches before they were asked for. Where the ledger is
    another than the one that sent the job, nobody may conclude anything from it; see `identity.check_folder`.

    Args:
        run: the job, whose lease is held.
        now: the time, if another than it is.
    """
    folder, ledger = run.folder, run.ledger
    record = ledger.job(run.job.name)
    if record is None:
        return []
    named = {request_path(folder, shard) for shard in ledger.shards(run.job.name)} | {folder.rows(record.build)}
    before = (now or datetime.now(UTC)) - timedelta(days=KEPT_DAYS)
    old = (folder.path / kept.name for kept in objects_of(folder.path) if kept.at < before)
    built = (path for path in old if path.parent in (folder.requests, folder.fragments) or path.match("rows-*.parquet"))
    return [path for path in built if path not in named]
