"""Evidence: by what the batches and files that a lost call made are known again, and what is done with spare ones."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from uuid import NAMESPACE_OID, uuid5

from overnight.errors import BatchHeld, NotFound, ProviderError, Transient, Unauthorized
from overnight.ledger.records import Batch, NewShard
from overnight.ledger.request_files import request_file
from overnight.ledger.run import Run, all_shards
from overnight.providers.inline import InlineProvider
from overnight.providers.provider import Provider
from overnight.providers.replies import TERMINAL, RemoteBatch, RemoteFile
from overnight.rows.lines import custom_ids

CLOCKS_SECONDS = 300
"""How far a provider's clock and ours may be apart."""
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


def find_upload(provider: Provider, name: str, size: int | None) -> RemoteFile | None:
    """The file that an upload made whose reply was lost, by its name and, where the bytes are ours, its size.

    Where files cannot be listed this is said: the upload is made again then, and its copy stays at the provider.

    Raises:
        Transient: they cannot be listed now.
    """
    try:
        named = (file for file in provider.files() if file.name == name)
        return next((file for file in named if size in (None, file.bytes)), None)
    except Unauthorized:
        raise
    except ProviderError as error:
        logger.warning("files cannot be listed, an earlier upload of %s may stay at the provider: %s", name, error)
        return None


def listed_batches(run: Run, provider: Provider, batch: Batch) -> list[RemoteBatch]:
    """Lists the batches that an attempt's create calls made.

    Raises:
        ProviderUnavailable: the listing is not complete.
        BatchHeld: one that is at work may be of it, and only its results will tell.
    """
    since = batch.started_at - 3600  # an attempt's first create call may have been answered to nobody, too
    if isinstance(provider, InlineProvider):
        return _proven(run, provider, batch, provider.batches(since))
    attempts = [b for shard in run.ledger.shards(run.job.name) for b in shard.batches if b.id != batch.id]
    known = {other.batch_id for other in attempts if other.batch_id}
    return batches_of(batch, provider.batches(since), known)


def may_be_of(remote: RemoteBatch, requests: int, first: float, last: float, known: set[str]) -> bool:
    """Whether a batch that carries no mark of ours may be of an attempt.

    Args:
        remote: as it is listed.
        requests: of the attempt's shard: a batch has as many.
        first: before its first create call, by our clock.
        last: after which its last one was no longer under way.
        known: batches that belong to other attempts.
    """
    if remote.id in known or remote.total not in (None, requests):
        return False
    made = remote.created_at
    return made is None or first - CLOCKS_SECONDS <= made <= last + CLOCKS_SECONDS


def _proven(run: Run, provider: InlineProvider, batch: Batch, listed: Iterable[RemoteBatch]) -> list[RemoteBatch]:
    """The batches that an attempt made, by the requests that their results name: each id holds a hash of its request.

    Raises:
        BatchHeld: the results of one that may be of it are not there yet.
    """
    shard = run.ledger.shard(batch.shard_id)
    known = {one.batch_id for other in all_shards(run.home) for one in other.batches if one.batch_id}
    last = (batch.creating_at or 0) + run.job.profile.lost_reply_seconds
    seen = [one for one in listed if may_be_of(one, shard.requests, batch.started_at, last, known)]
    found = [provider.retrieve(one.id) for one in seen[::-1]]
    if not found:
        return []
    asked = set(custom_ids(request_file(run.folder, shard, run.job.profile)))
    firsts = {one.id: provider.first_custom_id(one.id) for one in found if one.output_file_id}
    proven = [one for one in found if firsts.get(one.id) in asked]
    untold = [one.id for one in found if firsts.get(one.id) is None]
    if not proven and untold:
        raise BatchHeld(
            f"{', '.join(untold)} may be the batch of {shard.file_name}, whose reply was lost: its first result will "
            "tell, and nothing is created again before"
        )
    return proven


def marked_by_results(
    provider: InlineProvider,
    listed: Sequence[RemoteBatch],
    job: str,
    files: Sequence[tuple[NewShard, Path]],
    known: Mapping[str, str],
) -> Iterator[RemoteBatch]:
    """A listing in which the batches of a job carry marks as others' metadata does, taken from their results.

    Args:
        provider: whose batches carry none.
        listed: its batches.
        job: its name.
        files: shards that may have been sent, and their request files.
        known: tokens of the ledger's attempts, by the ids of their batches.

    Raises:
        BatchHeld: one with as many requests as a file has is at work.
    """
    sizes = {shard.requests for shard, _ in files}
    firsts: dict[str, str | None] = {}
    for remote in listed:
        if remote.id in known or (remote.total is not None and remote.total not in sizes):
            continue
        if not remote.output_file_id:
            raise BatchHeld(f"{remote.id} is at work, and may be a batch of {job}: its first result will tell")
        with suppress(NotFound):  # its results are deleted by now: nothing can be had of it
            firsts[remote.id] = provider.first_custom_id(remote.id)
    wanted = set(firsts.values())
    keys: dict[tuple[str, int | None], str] = {}
    for shard, path in files:
        for custom_id in custom_ids(path):
            if custom_id in wanted:  # a request that was sent again stands in several
                keys.setdefault((custom_id, shard.requests), shard.key)
                keys.setdefault((custom_id, None), shard.key)
    for remote in listed:
        token, key = known.get(remote.id), keys.get((firsts.get(remote.id) or "", remote.total))
        if token is None and key is not None:
            token = uuid5(NAMESPACE_OID, remote.id).hex
        marks = {"overnight_job": job, "overnight_shard": key, "overnight_attempt": token}
        told = {name: value for name, value in marks.items() if value is not None}
        yield replace(remote, metadata=told) if token is not None else remote


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
