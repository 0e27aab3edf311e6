"""What of a job may go out now: under its queue, behind its canary, within its budget. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from overnight.budget import affordable
from overnight.canary import last_canary
from overnight.job import Job
from overnight.queue import Budget, submittable
from overnight.records import Shard
from overnight.states import AT_PROVIDER


class Release(NamedTuple):
    """A decision about the shards that wait."""

    shards: list[Shard]
    """To be submitted now, oldest first; batches that may exist already are among them."""
    held: str | None = None
    """Why others are held back, beyond the provider's queue."""
    final: bool = False
    """Whether no open batch can change that: the job has to be stopped."""


def releasable(shards: Sequence[Shard], job: Job, now: float, budgets: Mapping[str, Budget]) -> Release:
    """Decides which shards go out.

    Args:
        shards: all of the job's.
        job: whose limits count.
        now: Unix seconds.
        budgets: the provider's token queues by model.
    """
    ready = submittable(shards, job, now, budgets)
    canary = last_canary(job, shards)
    if canary is not None and canary.fault and any(not shard.settled and not shard.sent for shard in shards):
        return Release([shard for shard in ready if _may_exist(shard)], canary.fault, final=True)
    if canary is not None and canary.open:
        ready = [shard for shard in ready if shard in canary.shards or _may_exist(shard)]
    chosen, refusal = affordable(job, shards, ready)
    waiting_for = any(shard.sent for shard in shards if not shard.settled)
    return Release(chosen, refusal, final=refusal is not None and not chosen and not waiting_for)


def _may_exist(shard: Shard) -> bool:
    """Whether it may have a batch at the provider, which has to be found whatever else is decided."""
    return shard.open_batch is not None and shard.open_batch.state in AT_PROVIDER
