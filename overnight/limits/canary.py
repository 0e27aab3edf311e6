"""The canary: a few requests that are tried before the others. Pure: ledger rows in, a verdict out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from overnight.job.job import Job
from overnight.ledger.records import Shard
from overnight.limits.budget import batch_cost, output_limit, planned_cost
from overnight.limits.prices import job_rates
from overnight.text import dollars


class Canary(NamedTuple):
    """How the last canary of a job stands."""

    shards: list[Shard]
    """That belong to it, with those sent again."""
    fault: str | None
    """Why the others may not follow; None while it is open, and where all is well."""

    @property
    def tried(self) -> bool:
        """Whether any of it was sent."""
        return any(batch.batch_id for shard in self.shards for batch in shard.batches)

    @property
    def open(self) -> bool:
        """Whether it has to be waited for."""
        return any(not shard.settled for shard in self.shards)


def last_canary(job: Job, shards: Sequence[Shard]) -> Canary | None:
    """The canary that was planned last; None where the job asks for none, or none was planned."""
    latest = max((shard.canary for shard in shards if shard.canary is not None), default=None)
    if job.limits.canary_rows is None or latest is None:
        return None
    mine = [shard for shard in shards if shard.canary == latest]
    canary = Canary(mine, None)
    return canary if canary.open else canary._replace(fault=_fault(job, mine, latest))


def _fault(job: Job, shards: Sequence[Shard], latest: int) -> str | None:
    first = [s for s in shards if (s.attempt, s.reask) == (1, 0) and any(batch.batch_id for batch in s.batches)]
    if not first:
        return None
    sent = sum(shard.requests for shard in shards if shard.round == latest)  # pieces of them have later rounds
    verdicts = [batch.verdicts or {} for shard in shards for batch in shard.batches]
    failed = sent - sum(counts.get("succeeded", 0) for counts in verdicts)
    if failed / sent > job.max_failed_fraction:
        bound = f"max_failed_fraction is {job.max_failed_fraction:.0%}"
        return f"of the canary's {sent:,} requests {failed:,} have no answer ({failed / sent:.0%}; {bound})"
    if not job_rates(job, first[0].model) or output_limit(job) is None:
        return None
    planned = sum(planned_cost(job, shard) for shard in first)
    cost = sum(batch_cost(job, shard, batch) or 0.0 for shard in first for batch in shard.batches)
    if cost > planned:
        return f"the canary's {sent:,} requests cost {dollars(cost)}, more than the {dollars(planned)} they could cost"
    return None
