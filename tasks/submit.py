"""submit: one shard is uploaded and its batch created, once, whatever happens on the way."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from itertools import groupby

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.refusals import turn_away
from overnight.errors import (
    FileNotThere,
    LeaseLost,
    LedgerError,
    LedgerUnavailable,
    ProviderError,
    QueueFull,
    ReplyLost,
    SubmissionUnknown,
    Transient,
)
from overnight.ledger.identity import claim_folder, keep_count
from overnight.ledger.lease import check_lease
from overnight.ledger.records import Batch, Shard
from overnight.ledger.request_files import cut_shard, whole_file
from overnight.ledger.run import Run
from overnight.ledger.states import AT_PROVIDER, State
from overnight.limits.admission import admissible
from overnight.limits.prices import job_rates
from overnight.limits.queue import token_queues, too_large
from overnight.limits.rescue import rescue_time
from overnight.providers.account import account_of, is_of
from overnight.providers.adoption import cancel_extras, find_upload, listed_batches, upload_name
from overnight.providers.provider import Provider
from overnight.providers.replies import RemoteBatch
from overnight.store.home import shown
from overnight.text import counted_of
from tasks.credentials import provider_of
from tasks.names import span_name

_FILE_TRIES = 4
"""Refusals of one uploaded file before it is uploaded anew: the file itself may be what is wrong."""
_FILE_SECONDS = 600
"""How long a file is waited for that the provider is still looking at."""
_SEND_SECONDS = 30
"""How long after its intent was written a create call may still be sent: far less than `lost_reply_seconds`, after
which another process may create the batch anew; a process that was stopped in between must not."""
logger = logging.getLogger("overnight.submit")


def usable_file(shard: Shard, account: str) -> str | None:
    """The file of a refused attempt of the same account, as long as it was not refused too often to be trusted."""
    refused = [batch for batch in shard.batches if batch.state is State.REFUSED and is_of(batch, account)]
    if not refused or (file_id := refused[-1].file_id) is None:
        return None
    unfound = sum(batch.file_id == file_id and batch.refused_for == "file" for batch in refused)
    return file_id if unfound < _FILE_TRIES else None


def admit(run: Run, now: float) -> list[Shard]:
    """The shards to submit now; those that no queue takes are cut first, and those held back are told why.

    A job whose canary failed, or whose budget leaves no room for anything more, is stopped.
    """
    ledger = run.ledger
    if (record := ledger.job(run.job.name)) is not None and record.stopped:
        ledger.stop(run.job.name, record.stopped)  # what the provider turned away since then is not sent again
    shards = ledger.shards(run.job.name)
    for shard in too_large(shards, queues := token_queues(run, shards)):
        limit = queues[shard.model].limit
        pieces = cut_shard(run.folder, shard, run.job.profile.overridden(max_enqueued_tokens=limit), ledger)
        logger.info("shard %s is cut to %d: the queue takes %s tokens", shard.file_name, len(pieces), limit)
    shards = ledger.shards(run.job.name)
    rescue_from = rescue_time(run, shards)
    decided = admissible(shards, run.job, now, token_queues(run, shards), rescue_from)
    if decided.stop:
        logger.warning("%s is stopped: %s", run.job.name, decided.stop)
        ledger.stop(run.job.name, decided.stop)
        return decided.shards
    held = [(shard, decided.held[shard.id]) for shard in shards if shard.id in decided.held]
    _tell(run, [(shard, why) for shard, why in held if why and why != shard.hold_reason])
    return decided.shards


def _tell(run: Run, held: list[tuple[Shard, str]]) -> None:
    """Notes why shards are held back, and logs each reason once."""
    for why, group in groupby(held, key=lambda one: one[1]):
        shards = [shard for shard, _ in group]
        logger.info("%d shards from %s on wait: %s", len(shards), shards[0].file_name, why)
        for shard in shards:
            run.ledger.hold(shard.id, shard.hold_until, why)


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
        check_lease(self._owner)
        ledger = self._run.ledger
        resumed = shard.open_batch is not None
        account = account_of(ledger, self._provider)
        file_id = usable_file(shard, account)
        begun = shard.open_batch
        if begun is not None and not shard.sent and not is_of(begun, account):  # nothing is paid for an upload
            ledger.refuse(begun, time.time(), time.time(), "it was uploaded to another account")
            shard, resumed = replace(shard, batches=()), False
        batch = shard.open_batch or ledger.start_attempt(shard.id, time.time(), file_id=file_id, account=account)
        # A process died between the intent and the reply: whether the call was sent, nobody knows.
        if batch.state is State.CREATING:
            batch = ledger.move(batch, State.UNKNOWN)
        if batch.state is State.UNKNOWN:
            return self._resolve(batch, shard)
        if batch.state is State.UPLOADING:
            batch = self._upload(batch, shard, look=resumed)
        elif resumed:
            self._wait_for_file(batch, (found := self._provider.file(batch.file_id or "")) is None or found.ready)
        return self._create(batch, shard)

    def _upload(self, batch: Batch, shard: Shard, *, look: bool) -> Batch:
        """Uploads a shard's file, unless a process that died has: its name there tells."""
        path, name = whole_file(self._run.folder, shard, self._run.job.profile), upload_name(batch)
        as_it_is = self._provider.dialect.line is None
        there = find_upload(self._provider, name, shard.bytes if as_it_is else None) if look else None
        try:
            file = there or self._provider.upload(path, name)
        except FileNotFoundError:
            raise LedgerError(f"{shown(path)} went away: another process built the job anew meanwhile") from None
        batch = self._run.ledger.move(batch, State.UPLOADED, file_id=file.id)
        self._wait_for_file(batch, file.ready)
        return batch

    def _wait_for_file(self, batch: Batch, ready: bool) -> None:
        """Holds an attempt back whose file the provider is still looking at (Azure), for a while.

        Raises:
            Transient: the file is not ready.
        """
        if not ready and time.time() < batch.started_at + _FILE_SECONDS:
            raise Transient(f"the provider is still processing the file {batch.file_id}")

    def _create(self, batch: Batch, shard: Shard) -> Batch:
        ledger = self._run.ledger
        # The intent, with the file's id, is on disk before the paid call: whatever happens from here on, the next
        # process looks for the batch before it makes one.
        requests = whole_file(self._run.folder, shard, self._run.job.profile)
        check_lease(self._owner)
        claim_folder(self._run)
        rates = job_rates(self._run.job, shard.model)
        batch = ledger.begin_create(
            batch, self._owner, time.time(), account=account_of(self._run.ledger, self._provider),
            rates=rates.as_record() if rates else None,
        )  # fmt: skip
        keep_count(self._run)
        metadata = {"overnight_job": shard.job, "overnight_shard": shard.key, "overnight_attempt": batch.token}
        until = (batch.creating_at or 0) + _SEND_SECONDS
        try:
            remote = self._provider.create(batch.file_id or "", shard.url, metadata, until, shard.model, requests)
        except ReplyLost as error:
            logger.warning("shard %s: %s; looking for its batch before anything else", shard.file_name, error)
            return self._adopt(ledger.move(batch, State.UNKNOWN), shard)
        except QueueFull as error:
            turn_away(self._run, batch, error.message)
            raise
        except (ProviderError, Transient) as error:
            kind = "file" if isinstance(error, FileNotThere) else "other"
            ledger.refuse(batch, time.time(), time.time() + self._run.job.profile.poll_seconds, error.message, kind)
            if isinstance(error, FileNotThere) and self._file_refusals(shard) >= 2 * _FILE_TRIES:
                raise ProviderError(f"two uploads of {shard.file_name} were not found: {error.message}") from None
            raise
        try:
            return self._submitted(batch, remote)
        except LedgerError:  # another process gave this attempt up while the call was under way
            self._give_back(batch, remote)
            raise

    def _file_refusals(self, shard: Shard) -> int:
        return sum(one.refused_for == "file" for one in self._run.ledger.shard(shard.id).batches)

    def _resolve(self, batch: Batch, shard: Shard) -> Batch:
        """After a lost reply: adopts the batch that it made, and creates again where there is none after a while."""
        try:
            return self._adopt(batch, shard)
        except ReplyLost:
            # One empty listing proves nothing: the call may be under way for 120 s, and listings lag behind creates.
            if time.time() < (batch.creating_at or 0) + self._run.job.profile.lost_reply_seconds:
                raise
        ledger, now = self._run.ledger, time.time()
        if (record := ledger.job(shard.job)) is not None and record.stopped:
            return self._give_up(batch, shard, record.stopped)
        rescue_from = rescue_time(self._run, ledger.shards(shard.job))
        patience = 2 * self._run.job.profile.lost_reply_seconds  # nobody looks for it afterwards
        if rescue_from is not None and now >= rescue_from:
            if now < (batch.creating_at or 0) + patience:
                raise Transient("its requests go to real time, once it is sure that it has no batch")
            ledger.refuse(batch, now, now, why := "the provider has no batch of it, and its requests go to real time")
            raise Transient(why)
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
        found = listed_batches(self._run, self._provider, batch)
        if not found:
            raise ReplyLost("the provider lists no batch of it yet")
        logger.warning("shard %s: found its batch %s", shard.file_name, found[0].id)
        adopted = self._submitted(batch, found[0])
        cancel_extras(self._provider, found[1:])
        return adopted

    def _submitted(self, batch: Batch, remote: RemoteBatch) -> Batch:
        now = time.time()
        deadline = now + self._run.job.limits.deadline_hours * 3600
        return self._run.ledger.move(
            batch, State.SUBMITTED, batch_id=remote.id, status=remote.status, submitted_at=now, deadline_at=deadline
        )

    def _give_back(self, batch: Batch, remote: RemoteBatch) -> None:
        """Cancels a batch that was made too late: another process gave the attempt up, or has another batch of it."""
        (now,) = (b for b in self._run.ledger.shard(batch.shard_id).batches if b.id == batch.id)
        if now.batch_id != remote.id and (now.batch_id or now.state not in AT_PROVIDER):
            cancel_extras(self._provider, [remote])


def submit(run: Run, provider: Provider, shard: Shard, owner: str) -> Batch | None:
    """Sends one shard; None where it has to wait, which the ledger then says."""
    try:
        batch = Submission(run, provider, owner).submit(shard)
    except Transient as error:
        if isinstance(error, LeaseLost | LedgerUnavailable):
            raise
        logger.warning("shard %s waits: %s", shard.file_name, error)
        if not isinstance(error, QueueFull):
            run.ledger.hold(shard.id, time.time() + run.job.profile.poll_seconds, str(error))
        return None
    if batch.state is State.SUBMITTED:
        logger.info("shard %s: batch %s, %s", shard.file_name, batch.batch_id, counted_of(shard.requests, "request"))
    return batch


@task(name="submit", task_run_name=span_name("submit", "shards"), cache_policy=NO_CACHE)
def submit_shards(run: Run, shards: tuple[Shard, ...], owner: str) -> int:
    """Sends shards, one after the other; returns how many batches there are of them.

    Raises:
        Terminal: one was refused for good; those behind it would be too.
    """
    with provider_of(run) as provider:
        return sum(submit(run, provider, shard, owner) is not None for shard in shards)
