"""cancel: sends nothing more of a job, and asks the provider to cancel what is open."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.errors import NotFound, ProviderError, Transient
from overnight.queue import submitted_batches
from overnight.run import Run
from overnight.states import State
from tasks.connect import provider_of
from tasks.submit import submit

REASON = "the job was cancelled"
logger = logging.getLogger("overnight.cancel")


@task(name="cancel", task_run_name="cancel", cache_policy=NO_CACHE)
def cancel_batches(run: Run, owner: str) -> int:
    """Stops a job and cancels its open batches; returns how many were asked to end.

    A create whose reply was lost is looked for first: what it made is cancelled, and nothing is created again. What
    cannot be cancelled now is looked at until it has ended all the same.

    Raises:
        Unauthorized: the key is not good.
    """
    ledger, asked = run.ledger, 0
    if all(shard.settled for shard in ledger.shards(run.job.name)):
        return 0
    ledger.stop(run.job.name, REASON)
    if all(shard.settled for shard in ledger.shards(run.job.name)):
        return 0
    with provider_of(run) as provider:
        for shard in ledger.shards(run.job.name):
            if shard.open_batch is not None and shard.open_batch.state in (State.CREATING, State.UNKNOWN):
                submit(run, provider, shard, owner)
        for batch in submitted_batches(ledger.shards(run.job.name)):
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
