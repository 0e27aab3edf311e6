"""A shard's request file: found whole, cut into smaller ones, written anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
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
from overnight.store.files import disk_errors, sync_folder
from overnight.store.home import JobFolder


def whole_file(folder: JobFolder, shard: Shard, profile: Profile) -> Path:
    """A shard's request file, as it was planned: its key is a hash of its bytes.

    Raises:
        LedgerError: it is gone, or is another by now.
    """
    path = folder.requests / shard.file_name
    if not path.exists() or file_key(path, shard.url, profile) != shard.key:
        what = "and what was sent cannot be told from what was not" if shard.sent else "nothing of it was sent"
        raise LedgerError(f"{path} is missing or not as it was planned ({what}): restore it from a backup")
    return path


def cut_shard(folder: JobFolder, shard: Shard, profile: Profile, ledger: Ledger) -> list[NewShard]:
    """Plans a shard's requests anew, in shards that a queue takes."""
    numbers, round_ = count(), ledger.next_round(shard.job)

    def write(staging: Path) -> Iterator[NewShard]:
        half = profile.overridden(max_requests=max(1, shard.requests // 2))
        writer = ShardWriter(staging, round_, numbers, half, kind_of(shard), shard.attempt, shard.reask, shard.canary)
        for _, line in shard_lines(folder, shard):
            writer.write([line])
        yield from writer.finish()

    pieces = staged_files(folder, write)
    ledger.split(shard, pieces)
    return pieces


def kind_of(shard: Shard) -> Kind:
    """What the lines of a shard share."""
    return Kind(shard.model, shard.url, frame_bytes(shard.requests, shard.bytes, shard.tokens))


def shard_lines(folder: JobFolder, shard: Shard) -> Iterator[tuple[str, bytes]]:
    """The custom_id and the line of each request of a shard, in its order."""
    path = folder.requests / shard.file_name
    with path.open("rb") as lines:
        yield from zip(custom_ids(path), lines, strict=True)


def staged_files(folder: JobFolder, write: Callable[[Path], Iterator[NewShard]]) -> list[NewShard]:
    """Has request files written in a folder beside, and moves them into place.

    Killed before the ledger knows of them, the files are overwritten by the next that get the round.
    """
    staging = folder.path / ".again"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with disk_errors(staging):
        planned = list(write(staging))
    for new in planned:
        (staging / new.file_name).replace(folder.requests / new.file_name)
    sync_folder(folder.requests)
    staging.rmdir()
    return planned
