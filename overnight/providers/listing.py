"""The batches of an account, and which of them are ours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from overnight.ledger.run import all_shards
from overnight.providers.provider import Provider
from overnight.text import when


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


def listed_batches(provider: Provider, home: Path, limit: int) -> list[ListedBatch]:
    """The newest batches of an account.

    Args:
        provider: whose.
        home: the folder of runs, whose ledger tells which batches are ours.
        limit: how many, newest first.
    """
    ours = {b.batch_id: (s.job, s.file_name) for s in all_shards(home) for b in s.batches if b.batch_id}
    found: list[ListedBatch] = []
    for remote in provider.batches():
        job, file = ours.get(remote.id, ((remote.metadata or {}).get("overnight_job"), None))
        found.append(ListedBatch(remote.id, remote.status, remote.done, remote.failed, remote.total,
                                 when(remote.created_at), job, file, remote.id in ours))  # fmt: skip
        if len(found) == limit:
            break
    return found
