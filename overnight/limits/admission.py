"""What of a job may go out now: under its queue, behind its canary, within its budget. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from overnight.job.job import Job
from overnight.ledger.records import Shard
from overnight.ledger.states import AT_PROVIDER
from overnight.limits.budget import affordable
from overnight.limits.canary import last_canary
from overnight.limits.queue import TokenQueue, wave
from overnight.limits.rescue import to_rescue


class Admission(NamedTuple):
    """A decision about the shards that wait."""

    shards: list[Shard]
    """To be submitted now, oldest first; batches that may exist already are among them."""
    held: Mapping[int, str]
    """By shard id: why it waits."""
    stop: str | None = None
    """Why nothing more of the job may go out, whatever becomes of its open batches."""


def admissible(
    shards: Sequence[Shard], job: Job, now: float, queues: Mapping[str, TokenQueue], rescue_from: float | None = None
) -> Admission:
    """Decides which shards go out in batches.

    Args:
        shards: all of the job's.
        job: whose limits count.
        now: Unix seconds.
        queues: the provider's token queues by model.
        rescue_from: from when on requests go to real time: only batches that may exist already are looked for then.
    """
    ready, held = wave(shards, job, now, queues)
    if rescue_from is not None and now >= rescue_from:
        return Admission([shard for shard in ready if _may_exist(shard)], {})
    return _allowed(shards, job, ready, held)


def rescuable(shards: Sequence[Shard], job: Job, now: float, rescue_from: float | None) -> Admission:
    """Decides which shards' requests are asked for in real time: none before `rescue_from`, but what was begun so."""
    due = rescue_from is not None and now >= rescue_from
    ready = [shard for shard in to_rescue(shards, now) if due or shard.in_real_time]
    return _allowed(shards, job, ready, {}, real_time=True)


def _allowed(
    shards: Sequence[Shard], job: Job, ready: Sequence[Shard], held: Mapping[int, str], *, real_time: bool = False
) -> Admission:
    """What canary and budget let go of what is ready."""
    canary = last_canary(job, shards)
    if canary is not None and canary.fault and any(not shard.settled and not shard.sent for shard in shards):
        return Admission([shard for shard in ready if _may_exist(shard)], {}, canary.fault)
    if canary is not None and canary.open:
        behind = {shard.id: "limits.canary_rows: the first requests are tried before" for shard in ready}
        ready = [shard for shard in ready if shard in canary.shards or _may_exist(shard)]
        held = {**held, **behind}
    chosen, refusal = affordable(job, shards, ready, real_time=real_time)
    left = {shard.id: refusal for shard in ready if refusal and shard not in chosen}
    waited_for = any(shard.sent for shard in shards if not shard.settled)
    going = {shard.id for shard in chosen}
    reasons = {shard_id: why for shard_id, why in {**held, **left}.items() if shard_id not in going}
    return Admission(chosen, reasons, refusal if left and not chosen and not waited_for else None)


def _may_exist(shard: Shard) -> bool:
    """Whether it may have a batch at the provider, which has to be found whatever else is decided."""
    return shard.open_batch is not None and shard.open_batch.state in AT_PROVIDER
