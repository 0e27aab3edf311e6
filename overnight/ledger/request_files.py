"""A shard's request file: found whole, cut into smaller ones, written anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path

from overnight.errors import LedgerError
from overnight.job.profiles import Profile
from overnight.ledger.database import Ledger
from overnight.ledger.records import NewShard, Shard
from overnight.ledger.shards import ShardWriter, file_key
from overnight.rows.lines import custom_ids
from overnight.rows.requests import Kind
from overnight.rows.tokens import frame_bytes
from overnight.store.files import disk_errors, make_private, sync_folder
from overnight.store.home import JobFolder, shown
from overnight.store.objects import is_shared, is_there, keep


def request_path(folder: JobFolder, shard: NewShard) -> Path:
    """Where a shard's request file belongs; an object's name tells what it holds, as it is never written twice."""
    name = f"{Path(shard.file_name).stem}-{shard.key}.jsonl" if is_shared(folder.path) else shard.file_name
    return folder.requests / name


def placed_file(folder: JobFolder, shard: Shard, profile: Profile) -> Path | None:
    """A shard's request file; one that was planned and not yet moved into place, since a process died, is moved."""
    path = request_path(folder, shard)
    if is_there(path):
        return path
    for staging in (folder.staging, folder.retries(shard.round)):
        staged = staging / shard.file_name
        if staged.exists() and file_key(staged, shard.url, profile) == shard.key:
            place_file(folder, staged, path)
            return path
    return None


def request_file(folder: JobFolder, shard: Shard, profile: Profile) -> Path:
    """A shard's request file.

    Raises:
        LedgerError: it is gone.
    """
    if (found := placed_file(folder, shard, profile)) is not None:
        return found
    path = shown(request_path(folder, shard))
    what = "and its requests are under way" if shard.sent else "nothing of it was sent"
    raise LedgerError(f"{path} is missing ({what}): restore it from a backup")


def whole_file(folder: JobFolder, shard: Shard, profile: Profile) -> Path:
    """A shard's request file, as it was planned: its key is a hash of its bytes.

    Raises:
        LedgerError: it is gone, or is another by now.
    """
    path = request_file(folder, shard, profile)
    if file_key(path, shard.url, profile) != shard.key:
        what = "and what was sent cannot be told from what was not" if shard.sent else "nothing of it was sent"
        raise LedgerError(f"{shown(path)} is missing or not as it was planned ({what}): restore it from a backup")
    return path


def place_file(folder: JobFolder, staged: Path, path: Path) -> None:
    """Moves a planned request file into place, where none may stand yet: what was sent is never overwritten.

    Raises:
        LedgerError: another file of the name stands there.
    """
    if path.exists() and path.read_bytes() != staged.read_bytes():
        raise LedgerError(f"{path} is there already, and is another than the ledger planned: have it looked for at the "
                          f"provider: overnight recover {folder.job}")  # fmt: skip
    make_private(folder.requests)
    staged.replace(path)
    sync_folder(folder.requests)


def place_round(folder: JobFolder, planned: Sequence[NewShard]) -> None:
    """Moves what goes out again into place, once the ledger knows of it."""
    for new in planned:
        place_file(folder, folder.retries(new.round) / new.file_name, request_path(folder, new))
    for round_ in {new.round for new in planned}:
        shutil.rmtree(folder.retries(round_), ignore_errors=True)


def cut_shard(
    folder: JobFolder, shard: Shard, profile: Profile, ledger: Ledger, most: int | None = None
) -> list[NewShard]:
    """Plans a shard's requests anew, in smaller ones.

    Args:
        folder: the job's.
        shard: that has no open attempt.
        profile: with the limits of a shard.
        ledger: where they are planned.
        most: requests in one; None: half of them.
    """
    numbers, round_ = count(), ledger.next_round(shard.job)
    source = request_file(folder, shard, profile)

    def write(staging: Path) -> Iterator[NewShard]:
        half = profile.overridden(max_requests=most or max(1, shard.requests // 2))
        writer = ShardWriter(staging, round_, numbers, half, kind_of(shard), shard.attempt, shard.reask, shard.canary)
        for _, line in shard_lines(source):
            writer.write([line])
        yield from writer.finish()

    pieces = staged_files(folder, round_, write)
    ledger.split(shard, pieces)
    place_round(folder, pieces)
    return pieces


def kind_of(shard: Shard) -> Kind:
    """What the lines of a shard share."""
    return Kind(shard.model, shard.url, frame_bytes(shard.requests, shard.bytes, shard.tokens))


def shard_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """The custom_id and the line of each request of a file, in its order."""
    with path.open("rb") as lines:
        yield from zip(custom_ids(path), lines, strict=True)


def staged_files(folder: JobFolder, round_: int, write: Callable[[Path], Iterator[NewShard]]) -> list[NewShard]:
    """Has request files of a round written beside; `place_round` moves them once the ledger knows of them.

    A process that died before that leaves the round free, and its files to be overwritten.
    """
    staging = folder.retries(round_)
    shutil.rmtree(staging, ignore_errors=True)
    make_private(staging)
    with disk_errors(staging):
        planned = list(write(staging))
        sync_folder(staging)
    for new in planned:
        keep(staging / new.file_name, at=request_path(folder, new))
    if not planned:
        staging.rmdir()
    return planned
