"""wait: looks at the open batches until one has ended or a held shard may go."""

from __future__ import annotations

import logging
import time
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.errors import NotFound, ProviderError, Transient
from overnight.hours import hours_of
from overnight.provider import Provider
from overnight.queue import ended_batches, next_release, pauses, submitted_batches
from overnight.records import Batch
from overnight.release import releasable
from overnight.replies import RemoteBatch
from overnight.run import Run
from overnight.wire import TERMINAL
from tasks.connect import provider_of
from tasks.submit import cancel_extras, listed_batches, refused_whole

_MOST_ERRORS = 1000
_MOST_MISSES = 3
_CANCEL_SECONDS = 3600.0
"""How long after its deadline a batch is waited for that was cancelled and does not end."""
logger = logging.getLogger("overnight.wait")


def seen(remote: RemoteBatch) -> dict[str, Any]:
    """What the ledger keeps of a look at a batch."""
    found: dict[str, Any] = {"status": remote.status, "done": remote.done, "failed": remote.failed}
    if remote.status in TERMINAL:
        found |= {
            "output_file_id": remote.output_file_id,
            "error_file_id": remote.error_file_id,
            "errors": [list(error) for error in remote.errors[:_MOST_ERRORS]] or None,
            "hours": hours_of(remote.metadata),
        }
    return found


def look(run: Run, provider: Provider, batch: Batch) -> None:
    """Asks for one batch and notes what changed; trouble on the way changes nothing.

    Raises:
        ProviderError: the key or the account; nothing else of the job would go through either.
    """
    try:
        remote = provider.retrieve(batch.batch_id or "")
    except NotFound as error:
        missed(run, batch, error.message)
    except Transient as error:
        logger.warning("cannot look at batch %s: %s; trying again", batch.batch_id, error)
    else:
        if batch.creates > 1:
            look_for_extras(run, provider, batch)
        seen_batch(run, batch, remote)
        if remote.status not in TERMINAL and batch.deadline_at and time.time() > batch.deadline_at:
            cancel_late(run, provider, batch, remote)


def look_for_extras(run: Run, provider: Provider, batch: Batch) -> None:
    """Cancels what an attempt's first create call made after all, once a lagging listing shows it."""
    try:
        found = listed_batches(run, provider, batch)
    except Transient as error:
        logger.warning("cannot list batches: %s", error)
        return
    cancel_extras(provider, [remote for remote in found if remote.id != batch.batch_id])


def cancel_late(run: Run, provider: Provider, batch: Batch, remote: RemoteBatch) -> None:
    """Ends the wait for a batch past its deadline: it is cancelled, and looked at until it has ended all the same.

    One that does not end even so is given up after an hour: it may have been paid.
    """
    if batch.cancelled_by_us and time.time() > (batch.deadline_at or 0) + _CANCEL_SECONDS:
        logger.error("batch %s was cancelled, and does not end: it is given up as lost", batch.batch_id)
        run.ledger.end(batch, status="lost", ended_at=time.time())
        return
    if remote.status == "cancelling":
        return
    if not batch.cancelled_by_us:
        logger.warning("batch %s is past its deadline: cancelling it, keeping what it answered", batch.batch_id)
        run.ledger.note(batch, cancelled_by_us=True)
    try:
        provider.cancel(batch.batch_id or "")
    except (Transient, ProviderError) as error:
        logger.warning("batch %s cannot be cancelled: %s", batch.batch_id, error)


def missed(run: Run, batch: Batch, message: str) -> None:
    """The provider does not know the batch: after three times in a row it is lost."""
    ledger = run.ledger
    if batch.misses + 1 < _MOST_MISSES:
        logger.warning("batch %s: %s; looking again", batch.batch_id, message)
        ledger.note(batch, misses=batch.misses + 1)
        return
    logger.error("batch %s is lost: the provider does not know it any more", batch.batch_id)
    ledger.end(batch, status="lost", ended_at=time.time())


def seen_batch(run: Run, batch: Batch, remote: RemoteBatch) -> None:
    """Notes a look at a batch; takes the step where it has ended.

    Raises:
        ProviderError: it failed for a reason that every other batch would.
    """
    ledger = run.ledger
    if remote.status not in TERMINAL:
        now = (remote.status, remote.done, remote.failed)
        if now != (batch.status, batch.done, batch.failed) or batch.misses:
            logger.info("batch %s: %s, %s answered", remote.id, remote.status, remote.done)
            ledger.note(batch, misses=0, **seen(remote))
        return
    logger.info("batch %s: %s", remote.id, remote.status)
    if remote.may_hold_answers or not refused_whole(run, batch, remote):
        ledger.end(batch, ended_at=time.time(), **seen(remote))


def look_at_all(run: Run, provider: Provider) -> None:
    """Looks at every open batch once."""
    for batch in submitted_batches(run.ledger.shards(run.job.name)):
        look(run, provider, batch)


def wait(run: Run, patience: float, *, only_ends: bool = False) -> None:
    """Looks until there is something to do, for at most `patience` seconds; looks once in any case.

    Args:
        run: whose batches are looked at.
        patience: seconds.
        only_ends: wait for batches to end, whatever could be submitted meanwhile.
    """
    ledger, until = run.ledger, time.monotonic() + patience
    for pause in pauses(run.job.profile.poll_seconds):
        with provider_of(run) as provider:  # anew for each look: the embedded endpoint may have moved
            look_at_all(run, provider)
        shards, now = ledger.shards(run.job.name), time.time()
        done = all(shard.settled for shard in shards)
        decided = releasable(shards, run.job, now, run.budgets(shards))
        to_submit = bool(decided.shards or decided.stop) and not only_ends
        if done or ended_batches(shards) or to_submit or time.monotonic() >= until:
            return
        release = None if only_ends else next_release(shards, now)
        time.sleep(pause if release is None else min(pause, max(release, 0.01)))


@task(name="wait", task_run_name="wait", cache_policy=NO_CACHE)
def wait_for_batches(run: Run, patience: float, only_ends: bool = False) -> None:
    """Waits until a batch has ended or, where that matters, a shard may go; at most `patience` seconds."""
    wait(run, patience, only_ends=only_ends)
