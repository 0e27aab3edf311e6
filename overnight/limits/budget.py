"""What a job has cost and may cost yet, under its budget. Pure: ledger rows in, figures out.

A budget is a bound: what is reserved for a batch is what it can cost at the most, not what it is likely to. Until the
provider has counted the tokens of a first, small batch, no request has more tokens than bytes and a chat template; from
then on what was counted replaces this guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from overnight.errors import JobError
from overnight.job.job import Job
from overnight.job.task import TOKEN_LIMITS
from overnight.ledger.records import Batch, Shard
from overnight.ledger.shards import Limit
from overnight.ledger.states import State
from overnight.limits.prices import Rates, Written, job_rates
from overnight.rows.tokens import MOST_TEMPLATE_TOKENS, PLANNED_TOKENS, dense_tokens
from overnight.text import dollars

_RESERVED = frozenset({State.CREATING, State.UNKNOWN, State.SUBMITTED, State.LOST, State.ENDED})
_TRIAL_SHARE = 0.1
"""The part of a budget that the first batch may cost at the most: what was guessed wrong matters that little."""
_LIMITS_BY_KIND = {"respond": ("max_output_tokens",), "complete": ("max_tokens",)}
_CHAT_LIMITS = ("max_tokens", "max_completion_tokens")
_ANSWERS = {"complete": ("n", "best_of")}
"""Parameters that ask for several answers to one request; all are billed."""
_SPREAD = 1.5
"""How many times the largest request, over the root of their number, some requests may be above the mean on average."""


class Spending(NamedTuple):
    """A job's USD, over all its runs."""

    spent: float
    """For answers that are collected, by the tokens that the provider counted; with `untold`."""
    reserved: float
    """At most, for batches that are at the provider."""
    untold: float = 0.0
    """Of what is spent: what lost and unreadable answers may have cost, at the most."""


class Affordable(NamedTuple):
    """What a budget leaves."""

    shards: list[Shard]
    refusal: str | None
    """Why others have to wait or stay; None where all may go."""


class Measured(NamedTuple):
    """What a provider counted for the requests of a model that a job sent."""

    mean: float
    """Input tokens of a request."""
    largest: float
    factor: float
    """Input tokens for each that a dense text of as many bytes has, in the batch with the most."""


def output_limit(job: Job) -> int | None:
    """The most output tokens of one request that a job's parameters allow; None where they do not say.

    The limit has to be the one that the endpoint knows: another is ignored by some providers, and bounds nothing.
    """
    kind, parameters = job.task.kind, job.parameters
    if kind in ("embed", "moderate"):
        return 0
    limits = [parameters[name] for name in _LIMITS_BY_KIND.get(kind, _CHAT_LIMITS) if name in parameters]
    answers = [parameters.get(name, 1) for name in _ANSWERS.get(kind, ("n",))]
    if not limits or not all(type(one) is int and one > 0 for one in (*limits, *answers)):
        return None
    return max(one for one in limits if isinstance(one, int)) * max(one for one in answers if isinstance(one, int))


def check_budget(job: Job) -> None:
    """Refuses a budget that cannot be kept.

    Raises:
        JobError: the price is not known, or an answer may be of any length.
    """
    if job.limits.budget_usd is None:
        return
    if job.task.kind == "raw":
        raise JobError("limits.budget_usd needs to know how long an answer can be: raw bodies cannot have a budget")
    if output_limit(job) is None:
        names = " or ".join(f"parameters.{name}" for name in _LIMITS_BY_KIND.get(job.task.kind, _CHAT_LIMITS))
        wrong = [name for name in TOKEN_LIMITS if name in job.parameters and f"parameters.{name}" not in names]
        also = f" (task.kind {job.task.kind!r} does not know {', '.join(wrong)})" if wrong else ""
        raise JobError(f"limits.budget_usd needs to know how long an answer can be: set {names}{also}; it, n and "
                       "best_of have to be whole numbers above 0")  # fmt: skip
    if (rates := job_rates(job)) is None:
        raise JobError(f"limits.budget_usd needs a price, and none is known for {job.model} at {job.profile.name}: "
                       "set provider.prices")  # fmt: skip
    if job.limits.finish_by is not None and rates.in_real_time is None:
        raise JobError("limits.finish_by with limits.budget_usd needs the price of real time, and the discount of "
                       f"{job.profile.name}'s batches is not known: leave one of the two out")  # fmt: skip


def _rates(job: Job, shard: Shard) -> Rates:
    if (rates := job_rates(job, shard.model)) is None:
        raise JobError(f"limits.budget_usd: no price is known for {shard.model}: set provider.prices")
    return rates


def batch_rates(job: Job, shard: Shard, batch: Batch | None = None) -> Rates | None:
    """The rates that stand with a batch since it was sent; today's for what was not, or before they were kept."""
    if batch is not None and batch.rates is not None:
        return Rates.recorded(batch.rates)
    rates = job_rates(job, shard.model)
    return rates.in_real_time if rates is not None and batch is not None and batch.real_time else rates


def measured(shards: Sequence[Shard], model: str) -> Measured | None:
    """What the provider counted for a model's requests; None where it has not yet, or does not tell."""
    requests, tokens, largest, factor = 0, 0, 0, 0.0
    for shard in shards:
        for batch in shard.batches if shard.model == model else ():
            usage = batch.usage or {}
            counted = sum((batch.verdicts or {}).get(verdict, 0) for verdict in ("succeeded", "invalid", "refused"))
            counted -= usage.get("unmetered", 0)
            if counted <= 0 or not usage.get("input_tokens"):
                continue
            requests, tokens = requests + counted, tokens + usage["input_tokens"]
            largest = max(largest, usage.get("largest_input", usage["input_tokens"] // counted))
            dense = dense_tokens(shard.requests, shard.bytes) * counted / shard.requests
            factor = max(factor, usage["input_tokens"] / dense)
    return Measured(tokens / requests, largest, factor) if requests else None


def most_input(shard: Shard, counted: Measured | None) -> tuple[float, float]:
    """Input tokens of a shard, and of its largest request, at the most."""
    longest = shard.largest or shard.bytes
    if counted is None:
        return shard.bytes + shard.requests * MOST_TEMPLATE_TOKENS, longest + MOST_TEMPLATE_TOKENS
    factor = max(1.0, counted.factor)
    spread = min(counted.largest, counted.mean + _SPREAD * counted.largest / math.sqrt(shard.requests))
    most = max(dense_tokens(shard.requests, shard.bytes) * factor, shard.requests * spread)
    return most, max(dense_tokens(1, longest) * factor, counted.largest)


def most_cost(
    job: Job, shard: Shard, counted: Measured | None, batch: Batch | None = None, *, real_time: bool = False
) -> float:
    """USD that a shard costs at the most: dense text, and every answer as long as its limit.

    Args:
        job: whose parameters bound the answers.
        shard: that is sent, or was.
        counted: what the provider counted for its model so far.
        batch: the attempt that was sent, with its rates.
        real_time: whether it would be asked one request at a time, at list price.

    Raises:
        JobError: the price of its model is not known.
    """
    real_time = batch.real_time if batch is not None else real_time
    rates = batch_rates(job, shard, batch) or _rates(job, shard)
    if batch is None and real_time:
        rates = rates.in_real_time or rates  # `check_budget` saw that it is known
    given, largest = most_input(shard, counted)
    # A cut answer is asked for again with twice the tokens each time (`answers.retry`).
    made = shard.requests * (output_limit(job) or 0) * 2**shard.reask
    return rates.cost(given, made, written=_most_written(job, given, real_time=real_time), largest=largest)


def _most_written(job: Job, given: float, *, real_time: bool) -> Written:
    """What of some input may be written to a cache: nobody knows before, so all of it by every request."""
    marks = job.profile.caches_system and not real_time
    return Written(0, given if marks or "cache_control" in job.parameters else 0)


def planned_cost(job: Job, shard: Shard) -> float:
    """USD that a shard costs as it is planned: its prompts as dense text, and every answer as long as its limit.

    What was asked in real time is planned at that price.
    """
    real_time = any(batch.real_time for batch in shard.batches)
    rates = _rates(job, shard)
    rates = (rates.in_real_time or rates) if real_time else rates
    made = shard.requests * (output_limit(job) or 0) * 2**shard.reask
    given = shard.tokens * PLANNED_TOKENS
    written = _most_written(job, given, real_time=real_time)
    return rates.cost(given, made, written=written, largest=dense_tokens(1, shard.largest or shard.bytes))


def trial_limit(job: Job, shards: Sequence[Shard]) -> Limit | None:
    """How large the first batch under a budget may be; None without a budget, or where tokens were counted before."""
    budget, model = job.limits.budget_usd, job.model or ""
    if budget is None or measured(shards, model) is not None or (rates := job_rates(job)) is None or rates.free:
        return None
    share = (budget - sum(spending(job, shards)[:2])) * _TRIAL_SHARE
    first = rates.tiers[0]
    one = MOST_TEMPLATE_TOKENS * first.input + (output_limit(job) or 0) * first.output
    requests = int(share / 2 / one) if one else 0
    size = int(share / 2 / first.input) if first.input else 1 << 40
    return Limit(max(1, requests), max(1, size))


def batch_cost(job: Job, shard: Shard, batch: Batch) -> float | None:
    """USD of a collected batch by the provider's token counts; None where the price or a count is not known."""
    rates, usage = batch_rates(job, shard, batch), batch.usage or {}
    if rates is None or (usage.get("unmetered") and not rates.free):
        return None
    return _told_cost(rates, shard, batch)


def _told_cost(rates: Rates, shard: Shard, batch: Batch) -> float:
    """USD of the tokens that were told: as each answer was priced, else of their sum."""
    if batch.cost_usd is not None:
        return batch.cost_usd
    usage = batch.usage or {}
    given = usage.get("input_tokens", 0)
    written = Written(usage.get("written_tokens", 0), usage.get("written_hour_tokens", 0))
    return rates.cost(given, usage.get("output_tokens", 0), usage.get("cached_tokens", 0), written,
                      largest=given / max(1, shard.requests))  # fmt: skip


def spending(job: Job, shards: Sequence[Shard]) -> Spending:
    """What a job has spent and reserved.

    Requests whose answers were lost, or whose tokens the provider does not tell, count with what they cost at the most.
    """
    spent = reserved = untold = 0.0
    counted = {model: measured(shards, model) for model in {shard.model for shard in shards}}
    for shard in shards:
        for batch in shard.batches:
            if batch.state in _RESERVED:
                reserved += most_cost(job, shard, counted[shard.model], batch)
            elif batch.state is State.COLLECTED:
                lost = _untold(job, shard, batch, counted[shard.model])
                rates = batch_rates(job, shard, batch) or _rates(job, shard)
                spent += _told_cost(rates, shard, batch) + lost
                untold += lost
    return Spending(spent, reserved, untold)


def _untold(job: Job, shard: Shard, batch: Batch, counted: Measured | None) -> float:
    """USD at the most of the answers of a collected batch that never came, or came without their tokens."""
    most = most_cost(job, shard, counted, batch)
    if batch.usage is None:
        return most
    lost = (batch.verdicts or {}).get("missing", 0) + batch.usage.get("unmetered", 0)
    return most * min(1.0, lost / shard.requests)


def batch_is_free(job: Job, model: str) -> bool:
    """Whether a model costs nothing, so that nothing has to be counted first."""
    rates = job_rates(job, model)
    return rates is not None and rates.free


def affordable(job: Job, shards: Sequence[Shard], ready: Sequence[Shard], *, real_time: bool = False) -> Affordable:
    """The shards among those that are ready that cannot take the job above its budget.

    Args:
        job: whose budget counts.
        shards: all of the job's.
        ready: in the order in which they would go.
        real_time: whether they go one request at a time, at list price.
    """
    if (budget := job.limits.budget_usd) is None:
        return Affordable(list(ready), None)
    spent, reserved, _ = spending(job, shards)
    counted = {model: measured(shards, model) for model in {shard.model for shard in ready}}
    left = budget - spent - reserved
    chosen, refusal = list[Shard](), None
    # Nobody knows yet what a request of these models costs: one batch at a time tells.
    unknown = {model for model, found in counted.items() if found is None and not batch_is_free(job, model)}
    trying = {shard.model for shard in shards if shard.open_batch is not None and shard.open_batch.state in _RESERVED}
    for shard in ready:
        if shard.open_batch is not None and shard.open_batch.state in _RESERVED:
            chosen.append(shard)
        elif shard.model in unknown & trying:
            refusal = refusal or "limits.budget_usd: the first batch tells what the others cost"
        elif (cost := most_cost(job, shard, counted[shard.model], real_time=real_time)) <= left:
            chosen.append(shard)
            trying.add(shard.model)
            left -= cost
        else:
            refusal = refusal or (
                f"limits.budget_usd is {dollars(budget)}: {dollars(spent)} are spent and {dollars(reserved)} "
                f"reserved for open batches; the next batch may cost {dollars(cost)}"
            )
    return Affordable(chosen, refusal)
