"""The provider's token queue: which shards fit into it now, and how long to pause before the next look."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from overnight.job.job import Job
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run
from overnight.ledger.states import AT_PROVIDER, State

FULL_QUEUE_POLLS = 10
"""How long a shard is held back that a full queue turned away, in the profile's `poll_seconds`."""
_SLOWEST = 10
"""A pause grows to so many times the first: at 30 s to 5 min, 300 looks in a day where 2,900 would be rate limited."""
_GROWTH = 1.5
_JITTER = 0.2
_BEGUN = frozenset({State.UPLOADING, State.UPLOADED, State.CREATING, State.UNKNOWN})
_NAMED_LIMIT = re.compile(r"limit:?\s*(?:is\s*)?([\d][\d,._]*)\s*(?:enqueued\s*)?tokens", re.IGNORECASE)
_MARGIN = 0.9
"""What is kept of a limit that a refusal teaches: our tokens are estimates, and other programs use the queue too."""


class TokenQueue(NamedTuple):
    """The token queue of one model at one provider."""

    limit: int | None
    """Enqueued tokens that it takes; None: not known."""
    enqueued: int
    """Estimated tokens in it now, of all jobs."""


def token_queues(run: Run, shards: Sequence[Shard]) -> dict[str, TokenQueue]:
    """The queues of the models of some shards: the lowest of what the job says and the provider's refusals taught."""
    profile, ledger = run.job.profile, run.ledger
    queues = {}
    for model in {shard.model for shard in shards if not shard.settled}:
        limits = [profile.max_enqueued_tokens, ledger.learned_limit(profile.queue, model, time.time())]
        limit = min((one for one in limits if one is not None), default=None)
        queues[model] = TokenQueue(limit, ledger.enqueued(profile.queue, model))
    return queues


class Wave(NamedTuple):
    """What goes out now, and what does not."""

    go: list[Shard]
    held: dict[int, str]
    """By shard id: why it waits."""


def wave(shards: Sequence[Shard], job: Job, now: float, queues: Mapping[str, TokenQueue]) -> Wave:
    """Sorts the shards that wait: those to submit now, oldest first, and those held back within the job's limits.

    Attempts that were begun come first: they may have a batch at the provider already. A shard is held back while
    open batches and enqueued tokens leave no room; one that is alone always goes. Where a limit exists that is not
    known (`probes_queue`), one batch at a time waits to be accepted.

    Args:
        shards: all of the job's.
        job: whose limits count.
        now: Unix seconds.
        queues: by model.
    """
    waiting = [shard for shard in shards if not shard.settled and not shard.in_real_time]
    at_provider = [s for s in waiting if s.open_batch and s.open_batch.state in AT_PROVIDER]
    room = job.limits.max_open_batches - len(at_provider)
    enqueued = {model: queue.enqueued for model, queue in queues.items()}
    unproven = {shard.model for shard in at_provider if _unproven(shard)}
    held = {s.model: s.hold_reason for s in waiting if _held(s, now) and s.open_batch is None}
    found = Wave([shard for shard in waiting if _begun(shard) and not _held(shard, now)], {})
    unproven |= {shard.model for shard in found.go}
    for shard in waiting:
        limit = queues[shard.model].limit
        probing = job.profile.probes_queue and job.profile.max_enqueued_tokens is None and shard.model in unproven
        if shard.open_batch is not None:
            continue
        if shard.model in held:
            found.held[shard.id] = held[shard.model] or "the queue is full"
        elif limit is not None and 0 < enqueued[shard.model] > limit - shard.tokens:
            found.held[shard.id] = f"it would not fit: the queue of {shard.model} takes {limit:,} tokens"
        elif probing:
            found.held[shard.id] = f"the limit of {shard.model} is not known: one batch at a time is tried"
        elif room <= 0:
            found.held[shard.id] = f"limits.max_open_batches: {job.limits.max_open_batches} are open"
        else:
            found.go.append(shard)
            room -= 1
            enqueued[shard.model] += shard.tokens
            unproven.add(shard.model)
    return found


def too_large(shards: Sequence[Shard], queues: Mapping[str, TokenQueue]) -> list[Shard]:
    """Shards that no empty queue would take, and that can be cut."""
    return [
        shard
        for shard in shards
        if not shard.settled
        and shard.open_batch is None
        and shard.requests > 1
        and (limit := queues[shard.model].limit) is not None
        and shard.tokens > limit
    ]


def _unproven(shard: Shard) -> bool:
    batch = shard.open_batch
    return batch is not None and (batch.state is not State.SUBMITTED or batch.status in (None, "validating"))


def _begun(shard: Shard) -> bool:
    return shard.open_batch is not None and shard.open_batch.state in _BEGUN


def _held(shard: Shard, now: float) -> bool:
    return shard.hold_until is not None and shard.hold_until > now


def named_limit(message: str) -> int | None:
    """The token limit that a refusal names: `Limit: 90,000 enqueued tokens` (OpenAI)."""
    found = _NAMED_LIMIT.search(message)
    return int(re.sub(r"\D", "", found[1])) if found else None


def learned_limit(message: str, shard: Shard, others: int) -> int | None:
    """What a refusal teaches about the queue's limit, in estimated tokens; None: nothing.

    Args:
        message: the provider's words.
        shard: that was refused.
        others: estimated tokens of other shards in the queue.
    """
    named = named_limit(message)
    if others:
        return min(filter(None, (named, max(1, int((others + shard.tokens) * _MARGIN)))))
    refusals = sum(batch.state is State.REFUSED for batch in shard.batches)
    if named is not None and shard.tokens <= named * _MARGIN and not refusals:
        return None  # others of the account fill the queue
    return min(filter(None, (named, max(1, shard.tokens // 2))))


def ended_batches(shards: Sequence[Shard], now: float) -> list[Batch]:
    """Attempts whose files are to be collected now: those in trouble only when they are due again."""
    return [
        batch
        for shard in shards
        if (batch := shard.open_batch)
        and batch.state is State.ENDED
        and (batch.look_at is None or batch.look_at <= now)
    ]


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


def never_fits(message: str, shard: Shard) -> bool:
    """Whether a refusal says that a shard, which cannot be cut, is larger than the whole queue."""
    named = named_limit(message)
    return shard.requests == 1 and named is not None and shard.tokens > named
