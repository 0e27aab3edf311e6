"""The folder of a job and the ledger know each other: a ledger that is another one, or older, sends nothing from it.

The folder keeps a mark with the ledger's identity, its own, and a count of builds and create calls; the ledger keeps
the same. The ledger counts first, the folder follows before anything is paid. So a ledger that was restored from a
backup counts less than the folder, and does not know what was sent since.
"""

from __future__ import annotations

import threading
from uuid import uuid4

import msgspec

from overnight.errors import LedgerError
from overnight.ledger.records import FolderRecord
from overnight.ledger.run import Run
from overnight.store.files import read_head, write_head
from overnight.store.home import JobFolder, shown
from overnight.store.objects import is_shared, refresh

_writing = threading.Lock()


class FolderMark(msgspec.Struct, frozen=True):
    """What stands in a job's folder about its ledger."""

    ledger: str
    folder: str
    counter: int


def read_mark(folder: JobFolder) -> FolderMark | None:
    """The mark of a job's folder; None where it has none yet.

    Raises:
        LedgerError: it cannot be read.
    """
    return _read(folder)[0]


def _read(folder: JobFolder) -> tuple[FolderMark | None, str | None]:
    found, version = read_head(folder.mark)
    try:
        return (msgspec.json.decode(found, type=FolderMark) if found is not None else None), version
    except msgspec.MsgspecError as error:
        raise LedgerError(f"{shown(folder.mark)} is damaged ({error}): {_mend(folder)}") from None


def check_folder(run: Run) -> None:
    """Refuses to work in a folder that another ledger wrote, or a later state of this one.

    Raises:
        LedgerError: says how the job is taken up again.
    """
    folder, ledger = run.folder, run.ledger
    refresh(folder.path)
    mark, record = read_mark(folder), ledger.folder(run.job.name)
    shards = ledger.shards(run.job.name)
    if wrong := _disagreement(mark, record, ledger.identity, sent=any(shard.batches for shard in shards)):
        raise LedgerError(f"{shown(folder.path)} {wrong}: {_mend(folder)}")
    if is_shared(folder.path):  # a build puts its files before it is planned, and may be killed in between
        return
    known = {shard.file_name for shard in shards}
    if strange := sorted(path.name for path in folder.requests.glob("*.jsonl") if path.name not in known):
        raise LedgerError(
            f"{folder.requests} has {', '.join(strange[:5])}, which the ledger does not know, and which may be paid: "
            f"{_mend(folder)}"
        )


def _disagreement(mark: FolderMark | None, record: FolderRecord | None, ledger: str, *, sent: bool) -> str | None:
    """What a folder's mark and the ledger's record of it tell of each other that cannot both be true.

    Args:
        mark: of the folder.
        record: of the ledger.
        ledger: which one it is.
        sent: whether the ledger knows of attempts.
    """
    if mark is None:
        return (
            "has no mark of the ledger, though the job was sent from there (was it moved away?)"
            if record and sent
            else None
        )
    if mark.ledger != ledger:
        return "was sent by another ledger than this one (OVERNIGHT_LEDGER_URL, or a ledger.db of another home?)"
    if record is None:
        return "was sent by a later state of the ledger than this one" if mark.counter else None
    if mark.folder != record.folder:
        return "is not the folder that the ledger sent this job from"
    if mark.counter > record.counter:
        behind = mark.counter - record.counter
        return f"was sent by a later state of the ledger than this one ({behind} builds or batches are not in it)"
    return None


def claim_folder(run: Run) -> None:
    """Has the folder and the ledger know each other, before the first request file is planned."""
    folder, ledger, job = run.folder, run.ledger, run.job.name
    mark, version = _read(folder)
    if mark is None:
        known = ledger.folder(job)
        mark = FolderMark(ledger.identity, known.folder if known else uuid4().hex, 0)
        _write(folder, mark, version)
    if ledger.folder(job) is None:
        ledger.keep_folder(FolderRecord(job, mark.folder, mark.counter))


def keep_count(run: Run) -> None:
    """Lets the folder's count follow the ledger's: after a build, and before every paid call."""
    with _writing:  # several shards are sent at once, and the count may not go back
        (mark, version), record = _read(run.folder), run.ledger.folder(run.job.name)
        if mark is not None and record is not None and mark.counter < record.counter:
            _write(run.folder, msgspec.structs.replace(mark, counter=record.counter), version)


def reclaim_folder(run: Run) -> None:
    """Makes the folder this ledger's, once everything that was sent from it was looked for."""
    folder, ledger, job = run.folder, run.ledger, run.job.name
    (mark, version), record = _read(folder), ledger.folder(job)
    counter = max(mark.counter if mark else 0, record.counter if record else 0) + 1
    identity = mark.folder if mark else record.folder if record else uuid4().hex
    ledger.keep_folder(FolderRecord(job, identity, counter))
    _write(folder, FolderMark(ledger.identity, identity, counter), version)


def _write(folder: JobFolder, mark: FolderMark, version: str | None) -> None:
    write_head(folder.mark, msgspec.json.encode(mark).decode() + "\n", version)


def _mend(folder: JobFolder) -> str:
    return (
        "name the ledger that it belongs to, or have its batches looked for at the provider: "
        f"overnight recover {folder.job} (or its job file)"
    )
