"""Evidence: by what the batches and files that a lost call made are known again, and what is done with spare ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from overnight.errors import ProviderError, Transient, Unauthorized
from overnight.ledger.records import Batch
from overnight.ledger.run import Run
from overnight.providers.provider import Provider
from overnight.providers.replies import TERMINAL, RemoteBatch, RemoteFile

logger = logging.getLogger("overnight.submit")


def batches_of(batch: Batch, listed: Iterable[RemoteBatch], known: set[str]) -> list[RemoteBatch]:
    """The batches at the provider that an attempt's create calls made: by our metadata, else by its input file.

    Args:
        batch: the attempt.
        listed: a complete listing, newest first.
        known: batch ids that belong to other attempts: a file may have been sent before.

    Returns:
        Oldest first, those that failed last. More than one only where a lost call was given up too early.
    """
    remotes = list(listed)[::-1]
    by_token = [remote for remote in remotes if token_of(remote) == batch.token]
    by_file = [
        remote
        for remote in remotes
        if token_of(remote) is None and remote.input_file_id == batch.file_id and remote.id not in known
    ]
    return sorted(by_token or by_file, key=lambda remote: remote.status == "failed")


def token_of(remote: RemoteBatch) -> str | None:
    """The attempt that a batch was made for, as its metadata tells; None where it tells none."""
    return (remote.metadata or {}).get("overnight_attempt")


def is_another(remote: RemoteBatch, batch: Batch) -> bool:
    """Whether what stands under a batch's id is another's: a server that was set up anew gives its ids again."""
    return token_of(remote) not in (None, batch.token)


def upload_name(batch: Batch) -> str:
    """An attempt's input file at the provider: no other attempt, of whatever job, has the name."""
    return f"overnight-{batch.token}.jsonl"


def find_upload(provider: Provider, name: str, size: int) -> RemoteFile | None:
    """The file that an upload made whose reply was lost.

    Where files cannot be listed this is said: the upload is made again then, and its copy stays at the provider.

    Raises:
        Transient: they cannot be listed now.
    """
    try:
        return next((file for file in provider.files() if (file.name, file.bytes) == (name, size)), None)
    except Unauthorized:
        raise
    except ProviderError as error:
        logger.warning("files cannot be listed, an earlier upload of %s may stay at the provider: %s", name, error)
        return None


def listed_batches(run: Run, provider: Provider, batch: Batch) -> list[RemoteBatch]:
    """Lists the batches that an attempt's create calls made.

    Raises:
        ProviderUnavailable: the listing is not complete.
    """
    attempts = [b for shard in run.ledger.shards(run.job.name) for b in shard.batches if b.id != batch.id]
    known = {other.batch_id for other in attempts if other.batch_id}
    return batches_of(batch, provider.batches(since=(batch.creating_at or 0) - 3600), known)


def cancel_extras(provider: Provider, extras: Iterable[RemoteBatch]) -> None:
    """Cancels batches that were made a second time for the same requests."""
    for extra in extras:
        logger.error(
            "batch %s was made besides another of the same requests (%s): cancelling it", extra.id, extra.status
        )
        if extra.status in TERMINAL:
            continue
        try:
            provider.cancel(extra.id)
        except (Transient, ProviderError) as error:
            logger.warning("batch %s cannot be cancelled: %s", extra.id, error)
