"""Deadline rescue: when what a batch has not answered goes to real time, and which requests do. Pure.

A request is at one place at a time: what is at the provider in a batch is cancelled and collected first, and only what
has no batch is asked for in real time. So nothing is paid twice for being late.
"""

from __future__ import annotations

from collections.abc import Sequence

from overnight.job.clock import finish_at
from overnight.job.job import Job
from overnight.ledger.records import Shard
from overnight.ledger.run import Run
from overnight.ledger.states import State

_ROUNDS = 25
"""So many requests each way at once make one attempt: where a machine is lost with its disk, all may be in doubt."""
_CANCEL_SECONDS = 900.0
"""For cancelled batches to end: OpenAI says ten minutes."""
_CALL_SECONDS = 5.0
"""For one answer in real time, so that there is an idea of how long all take."""


def rescue_at(job: Job, shards: Sequence[Shard], begun_at: float) -> float | None:
    """From when on a job's requests go to real time; None where it wants no such thing.

    As long before the end as cancelling and answering may take, and never before half of the time is over. What was
    answered since the beginning counts as work too: so the time does not move away again once it has come.

    Args:
        job: with its `limits.finish_by`.
        shards: all of it.
        begun_at: when it was built.
    """
    if job.limits.finish_by is None:
        return None
    end = finish_at(job.limits.finish_by, begun_at)
    work = sum(shard.requests for shard in shards if not shard.settled or _collected_since(shard, begun_at))
    return rescue_begins(job, work, begun_at, end)


def rescue_begins(job: Job, requests: int, begun_at: float, end: float) -> float:
    """The same of so many requests, and a known end."""
    needed = _CANCEL_SECONDS + requests / job.limits.rescue_concurrency * _CALL_SECONDS
    return end - min(needed, (end - begun_at) / 2)


def _collected_since(shard: Shard, at: float) -> bool:
    return any((batch.collected_at or 0.0) >= at for batch in shard.batches)


def rescue_time(run: Run, shards: Sequence[Shard]) -> float | None:
    """The same of a job as it was last built."""
    if run.job.limits.finish_by is None or (record := run.ledger.job(run.job.name)) is None:
        return None
    return rescue_at(run.job, shards, record.built_at)


def cancel_at(job: Job, rescue_from: float | None, deadline_at: float | None) -> float | None:
    """When an open batch is cancelled: at its own deadline, or for its requests to be rescued.

    Where a provider may keep nothing of a cancelled batch, or bill what it does not hand over, it is waited for.
    """
    if rescue_from is None or not job.profile.keeps_cancelled:
        return deadline_at
    return rescue_from if deadline_at is None else min(rescue_from, deadline_at)


def to_rescue(shards: Sequence[Shard], now: float) -> list[Shard]:
    """Shards whose requests have no batch, and those that were begun in real time and are not over.

    One that was not taken a moment ago waits, as after a refused batch.
    """
    mine = [shard for shard in shards if not shard.settled and (not shard.sent or _is_under_way(shard))]
    return [shard for shard in mine if not _waits(shard, now)]


def _waits(shard: Shard, now: float) -> bool:
    last = shard.batches[-1] if shard.batches else None
    turned_away = last is not None and last.real_time and last.state is State.REFUSED
    return turned_away and shard.hold_until is not None and shard.hold_until > now


def _is_under_way(shard: Shard) -> bool:
    return (batch := shard.open_batch) is not None and batch.real_time and batch.state is not State.ENDED


def piece_of(job: Job) -> int:
    """Requests of one attempt in real time, at the most."""
    return job.limits.rescue_concurrency * _ROUNDS
