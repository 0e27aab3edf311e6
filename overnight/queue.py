"""Which shards may go out now, and how long to pause before the next look. Pure: ledger rows in, decisions out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from overnight.job import Job
from overnight.ledger import Batch, Shard
from overnight.states import AT_PROVIDER, State

QUEUE_FULL_SECONDS = 60.0
"""How long a shard is held back that a full queue turned away."""
_SLOWEST = 10
_GROWTH = 1.5
_JITTER = 0.2


def submittable(shards: Sequence[Shard], job: Job, now: float) -> list[Shard]:
    """The shards to submit now, within the job's limits, oldest first.

    Attempts that were begun come first: they may have a batch at the provider already. A shard is held back while
    open batches and enqueued tokens leave no room; one that is alone always goes.
    """
    waiting = [shard for shard in shards if not shard.settled]
    at_provider = [s for s in waiting if s.open_batch and s.open_batch.state in AT_PROVIDER]
    room = job.limits.max_open_batches - len(at_provider)
    budget = job.profile.max_enqueued_tokens
    enqueued = sum(shard.tokens for shard in at_provider)
    chosen = [shard for shard in waiting if _begun(shard) and not _held(shard, now)]
    for shard in waiting:
        if shard.open_batch is not None or _held(shard, now):
            continue
        if room <= 0 or (budget and enqueued and enqueued + shard.tokens > budget):
            break
        chosen.append(shard)
        room -= 1
        enqueued += shard.tokens
    return chosen


def _begun(shard: Shard) -> bool:
    return shard.open_batch is not None and shard.open_batch.state not in (State.SUBMITTED, State.ENDED)


def _held(shard: Shard, now: float) -> bool:
    return shard.hold_until is not None and shard.hold_until > now


def ended_batches(shards: Sequence[Shard]) -> list[Batch]:
    """Attempts whose files are to be collected."""
    return [batch for shard in shards if (batch := shard.open_batch) and batch.state is State.ENDED]


def submitted_batches(shards: Sequence[Shard]) -> list[Batch]:
    """Attempts that are to be looked at."""
    return [batch for shard in shards if (batch := shard.open_batch) and batch.state is State.SUBMITTED]


def pauses(poll_seconds: float) -> Iterator[float]:
    """Pauses between looks in seconds: growing to ten times the first, with jitter so that runs do not poll as one."""
    pause = poll_seconds
    while True:
        yield pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311 - spreads load, keeps no secret
        pause = min(pause * _GROWTH, poll_seconds * _SLOWEST)


def next_release(shards: Sequence[Shard], now: float) -> float | None:
    """Seconds until the first held shard may be tried again; None where none is held."""
    times = [shard.hold_until - now for shard in shards if not shard.settled and shard.hold_until and _held(shard, now)]
    return min(times, default=None)
