"""recover: takes up a job whose ledger is another one, or older than what was sent, from what the provider lists."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.results import part_name
from overnight.ledger.identity import reclaim_folder
from overnight.ledger.records import Shard
from overnight.ledger.recovery import record_of, shard_of, unknown_files
from overnight.ledger.run import Run
from overnight.providers.account import account_of
from overnight.providers.adoption import token_of
from overnight.providers.provider import Provider
from overnight.providers.replies import RemoteBatch
from tasks.credentials import provider_of

logger = logging.getLogger("overnight.recover")


@dataclass(frozen=True)
class Recovered:
    """What was found of a job, and taken up."""

    job: str
    files: int
    """Request files that the ledger did not know."""
    batches: int
    """Batches that are taken up: the next `collect` or `run` reads their answers."""
    unsent: int
    """Files of these that no batch was made of, as far as the provider lists them: their requests may be sent again."""
    rebound: int
    """Attempts that the ledger knew, whose account has another key by now."""
    without_file: int
    """Batches of the job whose request file is not here: their answers cannot be told apart."""
    results: int
    """Result files that were moved aside: they are made anew from what the provider sent."""


def batches_by_shard(listed: Iterable[RemoteBatch], job: str) -> dict[str, list[RemoteBatch]]:
    """The batches of a job by the key of their shard, those that may hold answers first, then the oldest first."""
    found: dict[str, list[RemoteBatch]] = {}
    for remote in sorted(listed, key=lambda one: (one.status == "failed", one.created_at or 0.0)):
        about = remote.metadata or {}
        if about.get("overnight_job") == job and "overnight_shard" in about:
            found.setdefault(about["overnight_shard"], []).append(remote)
    return found


def recover(run: Run, provider: Provider) -> Recovered:
    """Takes a job up: its unknown request files become shards, and the provider's batches of them its attempts.

    Raises:
        ProviderUnavailable: the listing is not complete, and nothing may be concluded from it.
    """
    ledger, folder, job, now = run.ledger, run.folder, run.job.name, time.time()
    listed = batches_by_shard(provider.batches(), job)  # before anything is written: it is whole, or raises
    files = list(unknown_files(folder.requests, ledger.shards(job)))
    record = None if ledger.job(job) else record_of(run, now)
    new = [shard_of(path, run.job.profile) for path in files]
    sent = {shard.key for shard in new if any(one.status != "failed" for one in listed.get(shard.key, ()))}
    ledger.take_over(job, record, new, unsent=[shard.key for shard in new if shard.key not in sent])
    account, batches, rebound = account_of(ledger, provider), 0, 0
    shards = ledger.shards(job)
    for shard in shards:
        taken, again = _take_up(run, shard, listed.pop(shard.key, []), account)
        batches, rebound = batches + taken, rebound + again
    moved = _move_results(run, ledger.shards(job), now)
    reclaim_folder(run)
    lacking = sum(len(left) for left in listed.values())
    return Recovered(job, len(files), batches, len(new) - len(sent), rebound, lacking, moved)


def _take_up(run: Run, shard: Shard, remotes: list[RemoteBatch], account: str) -> tuple[int, int]:
    """Gives a shard the batch that was made of it; returns whether there was one, and how many accounts were mended."""
    known = {batch.token: batch for batch in shard.batches}
    taken = rebound = 0
    for remote in remotes:
        token = token_of(remote) or remote.id
        batch = known.get(token)
        if batch is not None and batch.batch_id is not None:
            if batch.account not in (None, account):
                run.ledger.note(batch, account=account)
                rebound += 1
            continue
        if remote.status == "failed" or taken:
            continue
        run.ledger.adopt(shard, token, remote.id, remote.input_file_id, remote.created_at or time.time(), account)
        logger.info("shard %s: batch %s is taken up", shard.file_name, remote.id)
        taken = 1
    return taken, rebound


def _move_results(run: Run, shards: Iterable[Shard], now: float) -> int:
    """Moves result parts aside that belong to attempts of the other ledger: numbers of attempts begin again here."""
    known = {part_name(shard, batch) for shard in shards for batch in shard.batches if batch.collected_at is not None}
    strange: list[Path] = [part for part in run.folder.results.glob("*.parquet") if part.name not in known]
    if strange:
        aside = run.folder.path / f"results-before-{now:.0f}"
        aside.mkdir(parents=True, exist_ok=True)
        for part in strange:
            part.replace(aside / part.name)
    return len(strange)


@task(name="recover", task_run_name="recover", cache_policy=NO_CACHE)
def recover_batches(run: Run) -> Recovered:
    """Takes up what the provider has of a job."""
    with provider_of(run, any_account=True) as provider:
        return recover(run, provider)
