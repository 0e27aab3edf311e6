"""What a job has cost and may cost yet, under its budget. Pure: ledger rows in, figures out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from overnight.errors import JobError
from overnight.job.job import TOKEN_LIMITS, Job
from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.limits.prices import job_rates
from overnight.rows.tokens import MOST_TOKENS
from overnight.text import dollars

_RESERVED = frozenset({State.CREATING, State.UNKNOWN, State.SUBMITTED, State.ENDED})


class Spending(NamedTuple):
    """A job's USD, over all its runs."""

    spent: float
    """For answers that are collected, by the tokens that the provider counted."""
    reserved: float
    """At most, for batches that are at the provider."""


class Affordable(NamedTuple):
    """What a budget leaves."""

    shards: list[Shard]
    refusal: str | None
    """Why others have to wait or stay; None where all may go."""


def output_limit(job: Job) -> int | None:
    """The most output tokens of one request that a job's parameters allow; None where they do not say."""
    if job.task.kind in ("embed", "moderate"):
        return 0
    limits = [job.parameters[name] for name in TOKEN_LIMITS if name in job.parameters]
    known = [one for one in (*limits, job.parameters.get("n", 1)) if type(one) is int and one > 0]
    if not limits or len(known) <= len(limits):
        return None
    return max(known[:-1]) * known[-1]


def check_budget(job: Job) -> None:
    """Refuses a budget that cannot be kept.

    Raises:
        JobError: the price is not known, or an answer may be of any length.
    """
    if job.limits.budget_usd is None:
        return
    if output_limit(job) is None:
        raise JobError("limits.budget_usd needs to know how long an answer can be: set parameters.max_tokens (or "
                       "max_completion_tokens, max_output_tokens); raw bodies cannot have a budget")  # fmt: skip
    if job_rates(job) is None:
        raise JobError(f"limits.budget_usd needs a price, and none is known for {job.model} at {job.profile.name}: "
                       "set provider.prices")  # fmt: skip


def most_cost(job: Job, shard: Shard) -> float:
    """USD that a shard costs at the most: dense text, and every answer as long as its limit.

    Raises:
        JobError: the price of its model is not known.
    """
    if (rates := job_rates(job, shard.model)) is None:
        raise JobError(f"limits.budget_usd: no price is known for {shard.model}: set provider.prices")
    output = (
        shard.requests * (output_limit(job) or 0) * 2**shard.reask
    )  # a cut answer is asked for with twice the tokens
    return rates.cost(round(shard.tokens * MOST_TOKENS), output)


def batch_cost(job: Job, shard: Shard, batch: Batch) -> float | None:
    """USD of a collected batch by the provider's token counts; None where the price or a count is not known."""
    rates, usage = job_rates(job, shard.model), batch.usage or {}
    if rates is None or (usage.get("unmetered") and (rates.input or rates.output)):
        return None
    return rates.cost(usage.get("input_tokens", 0), usage.get("output_tokens", 0), usage.get("cached_tokens", 0))


def spending(job: Job, shards: Sequence[Shard]) -> Spending:
    """What a job has spent and reserved.

    Requests whose answers were lost, or whose tokens the provider does not tell, count with what they cost at the most.
    """
    spent = reserved = 0.0
    for shard in shards:
        for batch in shard.batches:
            if batch.state in _RESERVED:
                reserved += most_cost(job, shard)
            elif batch.state is State.COLLECTED:
                spent += _spent(job, shard, batch)
    return Spending(spent, reserved)


def _spent(job: Job, shard: Shard, batch: Batch) -> float:
    if batch.usage is None:
        return most_cost(job, shard)
    told = batch_cost(job, shard, replace(batch, usage=batch.usage | {"unmetered": 0})) or 0.0
    untold = (batch.verdicts or {}).get("missing", 0) + batch.usage.get("unmetered", 0)
    return told + most_cost(job, shard) * untold / shard.requests


def affordable(job: Job, shards: Sequence[Shard], ready: Sequence[Shard]) -> Affordable:
    """The shards among those that are ready that cannot take the job above its budget.

    Args:
        job: whose budget counts.
        shards: all of the job's.
        ready: in the order in which they would go.
    """
    if (budget := job.limits.budget_usd) is None:
        return Affordable(list(ready), None)
    spent, reserved = spending(job, shards)
    left = budget - spent - reserved
    chosen, refusal = list[Shard](), None
    for shard in ready:
        if shard.open_batch is not None and shard.open_batch.state in _RESERVED:
            chosen.append(shard)
        elif (cost := most_cost(job, shard)) <= left:
            chosen.append(shard)
            left -= cost
        else:
            refusal = refusal or (
                f"limits.budget_usd is {dollars(budget)}: {dollars(spent)} are spent and {dollars(reserved)} "
                f"reserved for open batches; the next batch may cost {dollars(cost)}"
            )
    return Affordable(chosen, refusal)
