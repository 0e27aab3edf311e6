"""wait: polls the open batches until one has ended or a held shard may go."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.judge import LOST, Judgement, Listing, Step
from overnight.answers.refusals import close_refused
from overnight.answers.trouble import NO_TROUBLE, is_due, is_stuck, judge_batch, note_trouble, watched_batches
from overnight.errors import NotFound, ProviderError, Transient
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run
from overnight.ledger.states import State
from overnight.limits.admission import admissible, rescuable
from overnight.limits.hours import hours_of
from overnight.limits.queue import ended_batches, next_release, pauses, token_queues
from overnight.limits.rescue import rescue_time
from overnight.providers.adoption import cancel_extras, is_another, listed_batches
from overnight.providers.provider import Provider
from overnight.providers.replies import TERMINAL, RemoteBatch
from tasks.credentials import provider_of

_MOST_ERRORS = 1000
"""Errors of a whole batch that the ledger keeps: one for each broken line would be a copy of the file."""
_SHORTEST_PAUSE = 0.01
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


def poll(run: Run, provider: Provider, shard: Shard, batch: Batch) -> None:
    """Asks for one batch, and does what the judge says; trouble on the way changes nothing.

    Raises:
        ProviderError: the key or the account; nothing else of the job would go through either.
    """
    try:
        remote: RemoteBatch | None = provider.retrieve(batch.batch_id or "")
    except NotFound:
        remote = None
    except Transient as error:
        logger.warning("cannot look at batch %s: %s; trying again", batch.batch_id, error)
        return
    if remote is not None and is_another(remote, batch):
        remote = None
    judged = judge_batch(run, shard, batch, remote)
    if judged.step is Step.LIST:
        batch, remote, listing = look_in_listing(run, provider, batch)
        judged = judge_batch(run, shard, batch, remote, listing=listing)
    if remote is not None and batch.creates > 1:
        look_for_extras(run, provider, batch)
    if remote is not None and batch.state is State.LOST:
        logger.warning("batch %s was lost, and is there again", batch.batch_id)
        batch = run.ledger.move(batch, State.SUBMITTED, **NO_TROUBLE)
    act(run, provider, batch, remote, judged)


def look_in_listing(run: Run, provider: Provider, batch: Batch) -> tuple[Batch, RemoteBatch | None, Listing]:
    """Looks for a batch that the provider does not know in a complete listing of its account.

    Returns:
        The batch, with the time since which listings lack it; what the listing says of it; and whether it was whole.
    """
    try:
        listed = list(provider.batches(since=batch.started_at - 3600))
    except (Transient, ProviderError) as error:
        logger.warning("batch %s is not known, and batches cannot be listed: %s", batch.batch_id, error)
        return batch, None, "failed"
    mine = [one for one in listed if one.id == batch.batch_id and not is_another(one, batch)]
    if (found := next(iter(mine), None)) is not None:
        return batch, found, "not asked"
    absent_since = batch.absent_since or time.time()
    run.ledger.note(batch, absent_since=absent_since)
    return replace(batch, absent_since=absent_since), None, "lacks it"


def poll_ended(run: Run, provider: Provider, batch: Batch) -> None:
    """Asks again for a batch that has ended and could not be collected: its files may be named by now."""
    try:
        remote = provider.retrieve(batch.batch_id or "")
    except (Transient, NotFound) as error:
        logger.warning("cannot look at batch %s: %s; trying again", batch.batch_id, error)
        return
    if remote.status in TERMINAL and not is_another(remote, batch):
        run.ledger.note(batch, **seen(remote))


def act(run: Run, provider: Provider, batch: Batch, remote: RemoteBatch | None, judged: Judgement) -> None:
    """Takes the step that the judge names.

    Raises:
        ProviderError: the batch failed for a reason that every other would.
    """
    if remote is not None and remote.status in TERMINAL and judged.step is not Step.LOOK_AGAIN:
        logger.info("batch %s: %s", remote.id, remote.status)
    match judged.step:
        case Step.WAIT | Step.CANCEL:
            note_progress(run, batch, remote)
            if judged.step is Step.CANCEL:
                cancel_late(run, provider, batch)
        case Step.LOOK_AGAIN if remote is not None and remote.status in TERMINAL:
            run.ledger.end(batch, ended_at=time.time(), **seen(remote))  # it is in nobody's queue any more
            note_trouble(run, batch, judged.why)
        case Step.LOOK_AGAIN | Step.LIST:
            note_trouble(run, batch, judged.why)
        case Step.MISS:
            logger.error("batch %s counts as lost: %s", batch.batch_id, judged.why)
            run.ledger.move(batch, State.LOST)
            note_trouble(run, batch, judged.why)
        case Step.GIVE_UP:
            logger.error("batch %s is given up: %s", batch.batch_id, judged.why)
            run.ledger.end(batch, status=LOST, ended_at=time.time())
        case Step.COLLECT:
            run.ledger.end(batch, ended_at=time.time(), **NO_TROUBLE, **(seen(remote) if remote else {}))
        case _:
            close_refused(run, batch, judged)


def note_progress(run: Run, batch: Batch, remote: RemoteBatch | None) -> None:
    """Writes down what changed since the last look."""
    if remote is None:
        return
    now = (remote.status, remote.done, remote.failed)
    if now != (batch.status, batch.done, batch.failed) or batch.trouble_since is not None:
        logger.info("batch %s: %s, %s answered", remote.id, remote.status, remote.done)
        run.ledger.note(batch, **NO_TROUBLE, **seen(remote))


def look_for_extras(run: Run, provider: Provider, batch: Batch) -> None:
    """Cancels what an attempt's first create call made after all, once a lagging listing shows it."""
    try:
        found = listed_batches(run, provider, batch)
    except Transient as error:
        logger.warning("cannot list batches: %s", error)
        return
    cancel_extras(provider, [remote for remote in found if remote.id != batch.batch_id])


def cancel_late(run: Run, provider: Provider, batch: Batch) -> None:
    """Has a batch cancelled that is past its deadline; the intent is written down first, and it is polled on."""
    if not batch.cancelled_by_us:
        late = "past its deadline" if time.time() > (batch.deadline_at or 0) else "late for limits.finish_by"
        logger.warning("batch %s is %s: cancelling it, keeping what it answered", batch.batch_id, late)
        run.ledger.note(batch, cancelled_by_us=True)
    try:
        provider.cancel(batch.batch_id or "")
    except (Transient, ProviderError) as error:
        logger.warning("batch %s cannot be cancelled: %s", batch.batch_id, error)


def poll_all(run: Run, provider: Provider) -> None:
    """Looks at every batch that is due, once."""
    now = time.time()
    for shard, batch in watched_batches(run.ledger.shards(run.job.name)):
        if not is_due(batch, now):
            continue
        if batch.state is State.ENDED:
            poll_ended(run, provider, batch)
        else:
            poll(run, provider, shard, batch)


def wait(run: Run, patience: float, *, only_ends: bool = False) -> None:
    """Polls until there is something to do, for at most `patience` seconds; once in any case.

    Args:
        run: whose batches are looked at.
        patience: seconds.
        only_ends: wait for batches to end, whatever could be submitted meanwhile.
    """
    ledger, until = run.ledger, time.monotonic() + patience
    for pause in pauses(run.job.profile.poll_seconds):
        with provider_of(run) as provider:  # anew for each look: the embedded endpoint may have moved
            poll_all(run, provider)
        shards, now = ledger.shards(run.job.name), time.time()
        done = all(shard.settled for shard in shards)
        rescue_from = rescue_time(run, shards)
        admitted = admissible(shards, run.job, now, token_queues(run, shards), rescue_from)
        rescued = rescuable(shards, run.job, now, rescue_from)
        to_submit = bool(admitted.shards or admitted.stop or rescued.shards or rescued.stop) and not only_ends
        stuck = is_stuck(shards, now)
        if done or ended_batches(shards, now) or to_submit or stuck or time.monotonic() >= until:
            return
        releases = [None if only_ends else next_release(shards, now), rescue_from and rescue_from - now]
        soonest = min((one for one in releases if one is not None and one > 0), default=pause)
        time.sleep(min(pause, max(soonest, _SHORTEST_PAUSE)))


@task(name="wait", task_run_name="wait", cache_policy=NO_CACHE)
def wait_for_batches(run: Run, patience: float, only_ends: bool = False) -> None:
    """Waits until a batch has ended or, where that matters, a shard may go; at most `patience` seconds."""
    wait(run, patience, only_ends=only_ends)
