"""cancel: asks the provider to cancel a job's open batches."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.trouble import troubled
from overnight.errors import NotFound, ProviderError, Transient
from overnight.ledger.records import Shard
from overnight.ledger.run import Run
from overnight.ledger.states import State
from overnight.limits.queue import submitted_batches
from tasks.credentials import provider_of

REASON = "the job was cancelled"
"""Why nothing more of a cancelled job is sent, as its table and report say it."""
logger = logging.getLogger("overnight.cancel")


def stop_sending(run: Run) -> list[Shard]:
    """Sends nothing more of a job; returns the shards whose create call got no reply: they may have a batch."""
    ledger, name = run.ledger, run.job.name
    if any(not shard.settled for shard in ledger.shards(name)):
        ledger.stop(name, REASON)
    return [
        shard
        for shard in ledger.shards(name)
        if shard.open_batch is not None
        and shard.open_batch.state in (State.CREATING, State.UNKNOWN)
        and not shard.in_real_time
    ]


@task(name="cancel", task_run_name="cancel", cache_policy=NO_CACHE)
def cancel_batches(run: Run) -> int:
    """Cancels a job's open batches; returns how many were asked to end.

    What cannot be cancelled now is looked at until it has ended all the same; what is in trouble is given up, which is
    the person's to say.

    Raises:
        ProviderError: the provider refuses to be asked.
    """
    asked = 0
    for _, batch in troubled(run.ledger.shards(run.job.name)):
        run.ledger.note(batch, given_up=True, look_at=None)
    batches = submitted_batches(run.ledger.shards(run.job.name))
    if not batches:
        return 0
    with provider_of(run) as provider:
        for batch in batches:
            if batch.status == "cancelling" or batch.batch_id is None:
                continue
            try:
                provider.cancel(batch.batch_id)
                asked += 1
            except (Transient, NotFound) as error:
                logger.warning("batch %s cannot be cancelled now: %s", batch.batch_id, error)
            except ProviderError as error:
                logger.error("batch %s cannot be cancelled: %s", batch.batch_id, error)  # noqa: TRY400 - it says why
                raise
    return asked
