"""Which files at a provider are ours, which of them are still needed, and which are orphans. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import Literal, NamedTuple

from overnight.ledger.records import Shard
from overnight.providers.replies import RemoteFile

OUR_PREFIX = "overnight-"
"""What the names of uploaded request files start with."""

Use = Literal["open", "collected", "orphan", "foreign"]


class Stored(NamedTuple):
    """A file at the provider and what it is to us."""

    file: RemoteFile
    use: Use
    """`open`: a batch needs it, or has not given all its answers; `collected`: its answers are here; `orphan`: ours,
    but no ledger row names it; `foreign`: not ours."""
    job: str | None


def known_files(shards: Iterable[Shard]) -> dict[str, tuple[str, Use]]:
    """Ids of all files that the ledger names: their job, and whether they are still needed."""
    known: dict[str, tuple[str, Use]] = {}
    for shard in shards:
        for batch in shard.batches:
            over = shard.settled and batch is not shard.open_batch and not batch.lacks_answers
            needed: Use = "collected" if over else "open"
            for file_id in batch.file_ids:
                if known.get(file_id, ("", "collected"))[1] != "open":
                    known[file_id] = (shard.job, needed)
    return known


def sorted_out(files: Iterable[RemoteFile], known: Mapping[str, tuple[str, Use]], in_use: Set[str]) -> list[Stored]:
    """Tells for each file what it is.

    Args:
        files: at the provider.
        known: what the ledger names.
        in_use: input files of batches at the provider that have not ended, whoever made them: another machine's
            ledger may name them.
    """
    found = []
    for file in files:
        unknown: tuple[None, Use] = (None, "orphan" if (file.name or "").startswith(OUR_PREFIX) else "foreign")
        job, use = known.get(file.id, unknown)
        found.append(Stored(file, "open" if file.id in in_use and use != "foreign" else use, job))
    return found


def deletable(stored: Iterable[Stored], older_than: float) -> list[Stored]:
    """The files that nobody needs: ours, collected or orphaned, and created before a time (Unix seconds)."""
    return [
        one
        for one in stored
        if one.use in ("collected", "orphan") and one.file.created_at is not None and one.file.created_at < older_than
    ]
