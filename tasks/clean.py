"""clean: deletes a job's files at the provider, once the joined table holds what was in them."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.errors import ProviderError, Transient
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run
from overnight.providers.account import account_of, is_of
from overnight.providers.adoption import upload_name
from overnight.providers.download import is_address
from overnight.providers.provider import Provider
from overnight.providers.replies import RemoteFile
from tasks.credentials import provider_of

logger = logging.getLogger("overnight.clean")


def cleanable(shards: list[Shard]) -> list[Batch]:
    """Attempts that are over, whose files are still at the provider, and whose answers are all here."""
    return [
        batch
        for shard in shards
        if shard.settled
        for batch in shard.batches
        if not batch.cleaned and batch is not shard.open_batch and not batch.lacks_answers
    ]


def clean(run: Run, provider: Provider) -> int:
    """Deletes files; returns of how many attempts. What cannot be deleted is tried again by the next run."""
    cleaned = 0
    account = account_of(run.ledger, provider)
    batches = [batch for batch in cleanable(run.ledger.shards(run.job.name)) if is_of(batch, account)]
    uploads = _uploads(provider) if batches else []
    everything = [batch for shard in run.ledger.shards(run.job.name) for batch in shard.batches]
    needed = {file_id for batch in everything if batch.lacks_answers for file_id in batch.file_ids}
    for batch in batches:
        again = [file.id for file in uploads if file.name == upload_name(batch)]  # uploads whose reply was lost
        try:
            # Addresses (SiliconFlow) are not ours to delete.
            ours = {file_id for file_id in batch.file_ids if not is_address(file_id)}
            for file_id in {*ours, *again} - needed:
                provider.delete(file_id)
        except (Transient, ProviderError) as error:
            logger.warning("files of batch %s stay at the provider: %s", batch.batch_id, error)
            continue
        run.ledger.note(batch, cleaned=True)
        cleaned += 1
    return cleaned


def _uploads(provider: Provider) -> list[RemoteFile]:
    try:
        return list(provider.files())
    except (Transient, ProviderError) as error:
        logger.warning("files cannot be listed: an upload whose reply was lost may stay at the provider: %s", error)
        return []


@task(name="clean", task_run_name="clean", cache_policy=NO_CACHE)
def clean_job(run: Run) -> int:
    """Deletes the files of all settled batches at the provider."""
    with provider_of(run) as provider:
        return clean(run, provider)
