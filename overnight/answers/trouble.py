"""Trouble: batches that cannot be collected for now, though they may hold paid answers. They are asked about again."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from overnight.answers.judge import Counts, FilesFound, Judgement, Listing, history_of, judge_end
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run
from overnight.ledger.states import State
from overnight.limits.rescue import cancel_at, rescue_time
from overnight.providers.replies import RemoteBatch

_LONGEST_PAUSE = 120
"""In the profile's `poll_seconds`: at 30 s an hour, so that a month of looking is 700 calls."""
_LOOKS = 6
"""Looks at a batch in trouble before a run that waits for nothing else joins what there is: half an hour at 30 s."""
NO_TROUBLE: dict[str, Any] = {
    "trouble": None, "trouble_since": None, "absent_since": None, "look_at": None, "misses": 0,
}  # fmt: skip
"""What the ledger keeps of a batch that is well again."""
logger = logging.getLogger("overnight.wait")


def judge_batch(
    run: Run,
    shard: Shard,
    batch: Batch,
    remote: RemoteBatch | None,
    files: FilesFound | None = None,
    listing: Listing = "not asked",
) -> Judgement:
    """Asks the judge about an attempt as the ledger has it now."""
    limits, profile = run.job.limits, run.job.profile
    keep, resubmit = profile.output_days, limits.resubmit_lost
    rescue_from = rescue_time(run, run.ledger.shards(shard.job)) if limits.finish_by else None
    deadline_at = cancel_at(run.job, rescue_from, batch.deadline_at)
    history = history_of(
        shard, batch, time.time(), keep_days=keep, resubmit_lost=resubmit, listing=listing, deadline_at=deadline_at
    )
    counts = Counts(remote.done if remote else None, remote.failed if remote else None, shard.requests)
    return judge_end(remote, files, counts, history)


def note_trouble(run: Run, batch: Batch, why: str, **also: Any) -> None:
    """Notes that a batch cannot be collected for now; it is looked at again after a pause that grows."""
    now = time.time()
    pause = run.job.profile.poll_seconds * min(2**batch.misses, _LONGEST_PAUSE)
    if batch.trouble != why:
        logger.warning("batch %s: %s; asking again", batch.batch_id, why)
    values = {"trouble": why, "trouble_since": batch.trouble_since or now, "look_at": now + pause}
    run.ledger.note(batch, misses=batch.misses + 1, **values, **also)


def watched_batches(shards: Sequence[Shard]) -> list[tuple[Shard, Batch]]:
    """The attempts that are looked at: at the provider, lost, or ended and not to be collected for now."""
    found = []
    for shard in shards:
        batch = shard.open_batch
        if shard.settled or batch is None:
            continue
        ended = batch.state is State.ENDED and batch.trouble_since is not None and not batch.real_time
        if ended or batch.state in (State.SUBMITTED, State.LOST):
            found.append((shard, batch))
    return found


def is_due(batch: Batch, now: float) -> bool:
    """Whether a batch is to be looked at, or collected, now."""
    return batch.look_at is None or batch.look_at <= now


def troubled(shards: Sequence[Shard]) -> list[tuple[Shard, Batch]]:
    """The attempts in trouble, with their shards."""
    return [
        (shard, batch)
        for shard in shards
        if not shard.settled and (batch := shard.open_batch) is not None and batch.trouble_since is not None
    ]


def is_stuck(shards: Sequence[Shard], now: float) -> bool:
    """Whether a job waits for batches in trouble alone, which were looked at often enough and are not due now.

    Shards that are held back until these end (behind a canary, a budget, a full queue) wait for them too. What there is
    can be joined then; what is left may come with a later look.
    """
    waiting = [shard for shard in shards if not shard.settled]
    bad = troubled(shards)
    others = [shard for shard in waiting if shard.id not in {one.id for one, _ in bad}]
    if not bad or not all(_is_held(shard, now) for shard in others):
        return False
    return all((batch.misses >= _LOOKS or batch.state is State.LOST) and not is_due(batch, now) for _, batch in bad)


def _is_held(shard: Shard, now: float) -> bool:
    """Whether a shard waits for others, rather than for a moment to pass."""
    passed = shard.hold_until is None or shard.hold_until <= now
    return shard.open_batch is None and shard.hold_reason is not None and passed
