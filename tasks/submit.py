"""submit: one shard is uploaded and its batch created, once, whatever happens on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.again import cut_shard
from overnight.errors import LedgerError, ProviderError, QueueFull, ReplyLost, SubmissionUnknown, Transient
from overnight.provider import Provider
from overnight.queue import FULL_QUEUE_POLLS, learned_limit, too_large
from overnight.records import Batch, Shard
from overnight.release import releasable
from overnight.replies import RemoteBatch
from overnight.run import Run
from overnight.shards import file_key
from overnight.states import AT_PROVIDER, State
from tasks.connect import provider_of
from tasks.span import span_name

_FILE_TRIES = 4
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


def usable_file(shard: Shard) -> str | None:
    """The uploaded file of a refused attempt, as long as it was not refused too often to be trusted."""
    refused = [batch for batch in shard.batches if batch.state is State.REFUSED]
    if not refused or (file_id := refused[-1].file_id) is None:
        return None
    return file_id if sum(batch.file_id == file_id for batch in refused) < _FILE_TRIES else None


def turned_away(run: Run, batch: Batch, message: str) -> None:
    """A full queue: learns what it takes, and holds the shard back."""
    ledger, shard = run.ledger, run.ledger.shard(batch.shard_id)
    others = ledger.enqueued(shard.provider, shard.model) - shard.tokens * (batch.state in AT_PROVIDER)
    limit = learned_limit(message, shard, others)
    if limit is not None:
        ledger.learn_limit(shard.provider, shard.model, limit, time.time())
    pause = (
        run.job.profile.poll_seconds * FULL_QUEUE_POLLS if limit is None or others else 0.0
    )  # alone, it is cut and sent again at once
    logger.warning("shard %s: the queue is full, it waits: %s", shard.file_name, message)
    ledger.refuse(batch, time.time(), time.time() + pause, message)


def release(run: Run, now: float) -> list[Shard]:
    """The shards to submit now; those that no queue takes are cut first.

    A job whose canary failed, or whose budget leaves no room for anything more, is stopped.
    """
    ledger = run.ledger
    shards = ledger.shards(run.job.name)
    for shard in too_large(shards, budgets := run.budgets(shards)):
        limit = budgets[shard.model].limit
        pieces = cut_shard(run.folder, shard, run.job.profile.overridden(max_enqueued_tokens=limit), ledger)
        logger.info("shard %s is cut to %d: the queue takes %s tokens", shard.file_name, len(pieces), limit)
    shards = ledger.shards(run.job.name)
    decided = releasable(shards, run.job, now, run.budgets(shards))
    if decided.held:
        logger.warning("%s: %s", run.job.name, decided.held)
    if decided.held and decided.final:
        ledger.stop(run.job.name, decided.held)
    return decided.shards


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
        resumed = shard.open_batch is not None
        batch = shard.open_batch or ledger.start_attempt(shard.id, time.time(), file_id=usable_file(shard))
        if batch.state is State.CREATING:  # a process died between the intent and the reply
            batch = ledger.move(batch, State.UNKNOWN)
        if batch.state is State.UNKNOWN:
            return self._resolve(batch, shard)
        if batch.state is State.UPLOADING:
            file_id = self._upload(shard, look=resumed)
            batch = ledger.move(batch, State.UPLOADED, file_id=file_id)
        return self._create(batch, shard)

    def _upload(self, shard: Shard, *, look: bool) -> str:
        """Uploads a shard's file, unless a process that died has: its name there is its key."""
        path, name = self._whole_file(shard), f"overnight-{shard.key}.jsonl"
        found = self._provider.find_file(name, shard.bytes) if look else None
        return found or self._provider.upload(path, name)

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
            return self._adopt(ledger.move(batch, State.UNKNOWN), shard)
        except QueueFull as error:
            turned_away(self._run, batch, error.message)
            raise
        except (ProviderError, Transient) as error:
            ledger.refuse(batch, time.time(), time.time() + self._run.job.profile.poll_seconds, error.message)
            raise
        return self._submitted(batch, remote)

    def _resolve(self, batch: Batch, shard: Shard) -> Batch:
        """After a lost reply: adopts the batch that it made, and creates again where there is none after a while."""
        try:
            return self._adopt(batch, shard)
        except ReplyLost:
            if time.time() < (batch.creating_at or 0) + self._run.job.profile.lost_reply_seconds:
                raise
        if (record := self._run.ledger.job(shard.job)) is not None and record.stopped:
            return self._give_up(batch, shard, record.stopped)
        logger.warning("shard %s: the provider has no batch of it; creating it again", shard.file_name)
        return self._create(batch, shard)

    def _give_up(self, batch: Batch, shard: Shard, reason: str) -> Batch:
        """Ends an attempt that made no batch, of a job that sends nothing more."""
        ledger = self._run.ledger
        logger.info("shard %s: the provider has no batch of it, and none is made: %s", shard.file_name, reason)
        ledger.refuse(batch, time.time(), time.time(), reason)
        ledger.stop(shard.job, reason)
        return next(one for one in ledger.shard(shard.id).batches if one.id == batch.id)

    def _adopt(self, batch: Batch, shard: Shard) -> Batch:
        """Finds the batch that a lost create call made.

        Raises:
            ReplyLost: there is none yet; a call may still be under way, and a listing may lag.
            SubmissionUnknown: the provider lists no batches.
        """
        if not self._provider.profile.lists_batches:
            raise SubmissionUnknown(
                f"shard {shard.file_name}: the reply to its create call was lost, and {self._provider.profile.name} "
                f"lists no batches. Look for a batch with input file {batch.file_id} in its console"
            )
        others = {b.batch_id for s in self._run.ledger.shards(shard.job) for b in s.batches if b.batch_id}
        found = find_batch(batch, self._provider.batches(since=(batch.creating_at or 0) - 3600), others)
        if found is None:
            raise ReplyLost("the provider lists no batch of it yet")
        logger.warning("shard %s: found its batch %s", shard.file_name, found.id)
        return self._submitted(batch, found)

    def _submitted(self, batch: Batch, remote: RemoteBatch) -> Batch:
        now = time.time()
        deadline = now + self._run.job.limits.deadline_hours * 3600
        return self._run.ledger.move(
            batch, State.SUBMITTED, batch_id=remote.id, status=remote.status, submitted_at=now, deadline_at=deadline
        )


def submit_one(run: Run, shard: Shard, owner: str) -> str | None:
    """Sends one shard; returns its batch id, or None where it has to wait, or is not sent at all."""
    try:
        with provider_of(run) as provider:
            batch = Submission(run, provider, owner).submit(shard)
    except Transient as error:
        logger.warning("shard %s waits: %s", shard.file_name, error)
        if not isinstance(error, QueueFull):
            run.ledger.hold(shard.id, time.time() + run.job.profile.poll_seconds, str(error))
        return None
    if batch.state is State.SUBMITTED:
        logger.info("shard %s: batch %s, %d requests", shard.file_name, batch.batch_id, shard.requests)
    return batch.batch_id


@task(name="submit", task_run_name=span_name("submit", "shards"), cache_policy=NO_CACHE)
def submit_shards(run: Run, shards: tuple[Shard, ...], owner: str) -> int:
    """Sends shards, one after the other; returns how many batches there are of them.

    Raises:
        Terminal: one was refused for good; those behind it would be too.
    """
    return sum(submit_one(run, shard, owner) is not None for shard in shards)
