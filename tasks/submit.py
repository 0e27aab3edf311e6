"""submit: one shard is uploaded and its batch created, once, whatever happens on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.errors import LedgerError, ProviderError, QueueFull, ReplyLost, SubmissionUnknown, Transient
from overnight.ledger import Batch, Shard
from overnight.provider import Provider, RemoteBatch
from overnight.queue import QUEUE_FULL_SECONDS
from overnight.run import Run
from overnight.shards import file_key
from overnight.states import State
from tasks.connect import provider_of

TROUBLE_SECONDS = 15.0
logger = logging.getLogger("overnight.submit")


def find_batch(batch: Batch, listed: Iterable[RemoteBatch], known: set[str]) -> RemoteBatch | None:
    """The batch at the provider that a lost create call made: by our metadata, else by its input file.

    Args:
        batch: the attempt whose reply was lost.
        listed: a complete listing.
        known: batch ids that belong to other attempts: a file may have been sent before.
    """
    by_file = None
    for remote in listed:
        token = (remote.metadata or {}).get("overnight_attempt")
        if token == batch.token:
            return remote
        if token is None and remote.input_file_id == batch.file_id and remote.id not in known:
            by_file = remote
    return by_file


class Submission:
    """Takes one shard from wherever it stands to a batch at the provider."""

    def __init__(self, run: Run, provider: Provider, owner: str) -> None:
        self._run, self._provider, self._owner = run, provider, owner

    def submit(self, shard: Shard) -> Batch:
        """Uploads and creates; picks up where an earlier process stopped.

        Raises:
            ProviderError: the provider refuses for good; the shard stays planned.
            SubmissionUnknown: a create's reply was lost, and the provider lists no batches.
            Transient: trouble on the way; the shard is held back for a moment.
        """
        ledger = self._run.ledger
        batch = shard.open_batch or ledger.start_attempt(shard.id, time.time())
        if batch.state is State.CREATING:  # a process died between the intent and the reply
            batch = ledger.move(batch, State.UNKNOWN)
        if batch.state is State.UNKNOWN:
            return self._resolve(batch, shard)
        if batch.state is State.UPLOADING:
            file_id = self._provider.upload(self._whole_file(shard))
            batch = ledger.move(batch, State.UPLOADED, file_id=file_id)
        return self._create(batch, shard)

    def _whole_file(self, shard: Shard) -> Path:
        """The request file, as it was planned: its key is a hash of its bytes."""
        path = self._run.folder.requests / shard.file_name
        if not path.exists() or file_key(path, shard.url, self._run.job.profile) != shard.key:
            raise LedgerError(
                f"{path} is missing or not as it was planned: restore it from a backup. Nothing of it was sent"
            )
        return path

    def _create(self, batch: Batch, shard: Shard) -> Batch:
        ledger = self._run.ledger
        batch = ledger.begin_create(batch, self._owner, time.time())
        metadata = {"overnight_job": shard.job, "overnight_shard": shard.key, "overnight_attempt": batch.token}
        try:
            remote = self._provider.create(batch.file_id or "", shard.url, metadata)
        except ReplyLost as error:
            logger.warning("shard %s: %s; looking for its batch before anything else", shard.file_name, error)
            return self._resolve(ledger.move(batch, State.UNKNOWN), shard)
        except (ProviderError, Transient) as error:
            pause = QUEUE_FULL_SECONDS if isinstance(error, QueueFull) else TROUBLE_SECONDS
            ledger.refuse(batch, time.time(), time.time() + pause, error.message)
            raise
        return self._submitted(batch, remote)

    def _resolve(self, batch: Batch, shard: Shard) -> Batch:
        """After a lost reply: adopts the batch that it made, and creates again only where there is none."""
        if not self._provider.profile.lists_batches:
            raise SubmissionUnknown(
                f"shard {shard.file_name}: the reply to its create call was lost, and {self._provider.profile.name} "
                f"lists no batches. Look for a batch with input file {batch.file_id} in its console"
            )
        others = {b.batch_id for s in self._run.ledger.shards(shard.job) for b in s.batches if b.batch_id}
        found = find_batch(batch, self._provider.batches(), others)
        if found is not None:
            logger.warning("shard %s: found its batch %s", shard.file_name, found.id)
            return self._submitted(batch, found)
        logger.warning("shard %s: the provider has no batch of it; creating it", shard.file_name)
        return self._create(batch, shard)

    def _submitted(self, batch: Batch, remote: RemoteBatch) -> Batch:
        now = time.time()
        deadline = now + self._run.job.limits.deadline_hours * 3600
        return self._run.ledger.move(
            batch, State.SUBMITTED, batch_id=remote.id, status=remote.status, submitted_at=now, deadline_at=deadline
        )


@task(name="submit", task_run_name="submit {shard.file_name}", cache_policy=NO_CACHE)
def submit_shard(run: Run, shard: Shard, owner: str) -> str | None:
    """Sends one shard; returns its batch id, or None where it has to wait."""
    try:
        with provider_of(run) as provider:
            batch = Submission(run, provider, owner).submit(shard)
    except Transient as error:
        logger.warning("shard %s waits: %s", shard.file_name, error)
        if not isinstance(error, QueueFull):
            run.ledger.hold(shard.id, time.time() + TROUBLE_SECONDS, str(error))
        return None
    logger.info("shard %s: batch %s, %d requests", shard.file_name, batch.batch_id, shard.requests)
    return batch.batch_id
