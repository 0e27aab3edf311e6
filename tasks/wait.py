"""wait: looks at the open batches until one has ended or a held shard may go."""

from __future__ import annotations

import logging
import time
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.errors import NotFound, Transient
from overnight.ledger import Batch, Ledger
from overnight.provider import Provider, RemoteBatch
from overnight.queue import QUEUE_FULL_SECONDS, ended_batches, next_release, pauses, submittable, submitted_batches
from overnight.run import Run
from overnight.states import State
from overnight.wire import TERMINAL
from tasks.connect import provider_of

_MOST_ERRORS = 1000
logger = logging.getLogger("overnight.wait")


def seen(remote: RemoteBatch) -> dict[str, Any]:
    """What the ledger keeps of a look at a batch."""
    found: dict[str, Any] = {"status": remote.status, "done": remote.done, "failed": remote.failed}
    if remote.status in TERMINAL:
        found |= {
            "output_file_id": remote.output_file_id,
            "error_file_id": remote.error_file_id,
            "errors": [list(error) for error in remote.errors[:_MOST_ERRORS]] or None,
        }
    return found


def look(provider: Provider, ledger: Ledger, batch: Batch) -> None:
    """Asks for one batch and notes what changed; trouble on the way changes nothing."""
    try:
        if batch.deadline_at and time.time() > batch.deadline_at and not batch.cancelled_by_us:
            logger.warning("batch %s is past its deadline: cancelling it, keeping what it answered", batch.batch_id)
            provider.cancel(batch.batch_id or "")
            ledger.note(batch, cancelled_by_us=True)
        remote = provider.retrieve(batch.batch_id or "")
    except (Transient, NotFound) as error:
        logger.warning("cannot look at batch %s: %s; trying again", batch.batch_id, error)
        return
    if remote.status not in TERMINAL:
        if (remote.status, remote.done, remote.failed) != (batch.status, batch.done, batch.failed):
            ledger.note(batch, **seen(remote))
        return
    logger.info("batch %s: %s", remote.id, remote.status)
    ended = ledger.move(batch, State.ENDED, ended_at=time.time(), **seen(remote))
    if remote.queue_full:
        logger.warning("batch %s: the queue is full: %s", remote.id, remote.error_text)
        ledger.refuse(ended, time.time(), time.time() + QUEUE_FULL_SECONDS, remote.error_text or "the queue is full")


def wait(run: Run, patience: float) -> None:
    """Looks until there is something to do, for at most `patience` seconds; looks once in any case."""
    ledger, until = run.ledger, time.monotonic() + patience
    for pause in pauses(run.job.profile.poll_seconds):
        with provider_of(run) as provider:  # anew for each look: the embedded endpoint may have moved
            for batch in submitted_batches(ledger.shards(run.job.name)):
                look(provider, ledger, batch)
        shards, now = ledger.shards(run.job.name), time.time()
        done = all(shard.settled for shard in shards)
        if done or ended_batches(shards) or submittable(shards, run.job, now) or time.monotonic() >= until:
            return
        release = next_release(shards, now)
        time.sleep(pause if release is None else min(pause, max(release, 0.01)))


@task(name="wait", cache_policy=NO_CACHE)
def wait_for_batches(run: Run, patience: float) -> None:
    """Waits until a batch has ended or a held shard may go, at most `patience` seconds."""
    wait(run, patience)
