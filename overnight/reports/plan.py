"""What a job would send and cost, as figures and as text."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from overnight.job.clock import finish_at
from overnight.job.job import Job
from overnight.job.parameters import unknown_parameters
from overnight.job.prompt import schema_changes
from overnight.ledger.builder import Build
from overnight.limits.budget import Spending, output_limit
from overnight.limits.hours import hours_text
from overnight.limits.prices import Rates, job_rates
from overnight.limits.rescue import rescue_begins
from overnight.providers.dialects import dialect_of
from overnight.rows.tokens import BYTES_PER_TOKEN, estimated_tokens
from overnight.text import code, counted_of, dollars, inline, printable, table, when

_MOST_SHARDS = 20
_MOST_CHARACTERS = 1500


@dataclass(frozen=True)
class Plan:
    """A job's figures before anything is sent."""

    job: str
    rows: int
    unsendable: int
    """Rows that cannot be sent: a null where text is needed, or too large."""
    requests: int
    known: int
    """Requests that are answered already, or on their way."""
    sending: int
    """Requests that are to be sent."""
    shards: int
    bytes: int
    """Of what is to be sent."""
    input_tokens: int
    """Estimated."""
    output_tokens: int | None
    """At most: every answer as long as its token limit; None where the job sets none."""
    cost_usd: float | None
    """Of the tokens above, with `limits.finish_by` at the price of real time; None where the price is not known."""
    cost_source: str
    text: str
    """All of it for people, in Markdown."""

    @property
    def hopeless(self) -> bool:
        """Whether there is nothing to send, and nothing was ever sent: not one row can be."""
        return self.rows > 0 and self.requests == 0


class Unsendable(NamedTuple):
    """Rows that cannot be sent, for one reason."""

    code: str
    rows: int
    first: int
    """The number of the first of them, from 1."""
    message: str
    """Of that row."""


def make_plan(
    job: Job,
    build: Build,
    samples: Sequence[Mapping[str, Any]],
    unsendable: Sequence[Unsendable] = (),
    so_far: Spending | None = None,
    hours: Mapping[str, Any] | None = None,
) -> Plan:
    """Adds a build up.

    Args:
        job: what is asked.
        build: what would be sent.
        samples: a few request bodies.
        unsendable: why rows cannot be sent.
        so_far: what earlier runs spent and reserved, where the job has a budget.
        hours: the endpoint's cheap hours, where it has some.
    """
    sent = sum(shard.requests for shard in build.shards)
    size = sum(shard.bytes for shard in build.shards)
    given = sum(shard.tokens for shard in build.shards)
    limit = output_limit(job)
    made = None if limit is None else limit * sent
    rates = job_rates(job)
    cost = _cost(build, limit, rates) if rates else None
    rescue = _rescue(job, build, cost, rates, time.time()) if job.limits.finish_by else None
    source = rates.source if rates else "no price is known: set provider.prices"
    figures = _figures(job, build, sent, size, given, made, cost, source, rates)
    head = f"# Plan of {job.name}\n\n" + table(
        ["", ""],
        [
            *figures,
            *([("cheap hours", hours_text(hours))] if hours else []),
            *_limits(job, so_far),
            *([("limits.finish_by", rescue.text)] if rescue else []),
        ],
    )
    text = (
        "\n\n".join(filter(None, [head, _unsendable(unsendable), _shards(build), _notes(job), _samples(samples)]))
        + "\n"
    )
    return Plan(job.name, build.rows, build.unsendable, build.requests, build.known, sent, len(build.shards), size,
                given, made, rescue.most if rescue else cost, source, text)  # fmt: skip


class _Rescue(NamedTuple):
    """What real time would cost."""

    most: float | None
    text: str


def _rescue(job: Job, build: Build, cost: float | None, rates: Rates | None, now: float) -> _Rescue:
    """When requests go to real time, and what that costs at the worst: where no batch answers anything in time."""
    planned = sum(shard.requests for shard in build.shards)
    end = finish_at(job.limits.finish_by or "", now)
    begins = rescue_begins(job, planned, now, end)
    real = rates.in_real_time if rates else None
    most = _cost(build, output_limit(job), real) if real and cost is not None else None
    waits = "" if job.profile.keeps_cancelled else (
        f"; {job.profile.name} is not known to hand over what a cancelled batch has answered, so batches are waited "
        "for, and only what has none goes to real time"
    )  # fmt: skip
    return _Rescue(most, f"{when(end)} UTC: from {when(begins)} UTC on, what has no answer is asked for in real time"
                         f"; at the worst all of it, for {dollars(most)}{waits}")  # fmt: skip


def _cost(build: Build, limit: int | None, rates: Rates) -> float:
    """USD of a build; a file with a request so long that it costs more per token is priced by that."""
    return sum(
        rates.cost(shard.tokens, (limit or 0) * shard.requests, largest=estimated_tokens(1, shard.largest))
        for shard in build.shards
    )


def _figures(job: Job, build: Build, sent: int, size: int, given: int, made: int | None, cost: float | None,
             source: str, rates: Rates | None) -> list[tuple[str, str]]:  # fmt: skip
    bound = "up to " if made else ""
    going = f"{counted_of(sent, 'request')} in {counted_of(len(build.shards), 'batch')}"
    rows = [
        ("provider", f"{job.profile.name}, {inline(job.model or 'the models of the requests')}"),
        ("rows", f"{build.rows:,}" + (f", {build.unsendable:,} of them cannot be sent" if build.unsendable else "")),
        ("distinct requests", f"{build.requests:,}"),
        ("answered already or on their way", f"{build.known:,}"),
        ("to be sent", f"{going}, {size:,} bytes" if sent else _nothing(build)),
        (
            "after a lost reply its batch is known by",
            dialect_of(job.profile).evidence if job.profile.lists_batches else "nothing: its batches cannot be listed",
        ),
        ("input tokens", f"about {given:,} (estimated at {BYTES_PER_TOKEN} bytes each)"),
        ("output tokens", "unknown: parameters.max_tokens is not set" if made is None else f"{bound}{made:,}"),
        (
            "cost",
            f"{bound if cost else ''}{dollars(cost)}{' for the input' if made is None and cost else ''} ({source})",
        ),
    ]
    if rates and rates.real_time and cost:
        rows.append(("in real time", dollars(cost * rates.real_time)))
    return rows


def _limits(job: Job, so_far: Spending | None) -> Iterator[tuple[str, str]]:
    """What the job says of money and of care."""
    limits = job.limits
    if limits.budget_usd is not None and so_far is not None:
        yield (
            "limits.budget_usd",
            f"{dollars(limits.budget_usd)}: {dollars(so_far.spent)} spent, {dollars(so_far.reserved)} reserved",
        )
    if limits.approve_above_usd is not None:
        yield "limits.approve_above_usd", f"{dollars(limits.approve_above_usd)}: above it a person is asked"
    if limits.canary_rows is not None:
        yield "limits.canary_rows", f"{limits.canary_rows:,} requests go first, the others only when these are well"


def _nothing(build: Build) -> str:
    """Why nothing is to be sent."""
    return "nothing: all is answered, or on its way" if build.requests else "nothing: no row can be sent"


def _unsendable(reasons: Sequence[Unsendable]) -> str:
    if not reasons:
        return ""
    rows = [(inline(one.code), f"{one.rows:,}", f"row {one.first:,}: {inline(one.message)}") for one in reasons]
    return "## Rows that cannot be sent\n\n" + table(["reason", "rows", "the first of them"], rows)


def _shards(build: Build) -> str:
    shown = build.shards[:_MOST_SHARDS]
    rows = [(s.file_name, inline(s.model), s.url, f"{s.requests:,}", f"{s.bytes:,}", f"{s.tokens:,}") for s in shown]
    more = f"\n\n… and {len(build.shards) - len(shown):,} more." if len(build.shards) > len(shown) else ""
    return (
        "## Batches\n\n" + table(["file", "model", "url", "requests", "bytes", "tokens"], rows) + more if rows else ""
    )


def _notes(job: Job) -> str:
    notes = list(job.profile.notes)
    notes += [f"task.schema was changed so that the provider holds answers to it: {code(change)}"
              for change in schema_changes(job)]  # fmt: skip
    notes += [f"{code('parameters.' + name)} is not known of {job.task.url}: it is sent as it is."
              for name in unknown_parameters(job.task.url, job.parameters)]  # fmt: skip
    if job.task.kind in ("classify", "extract") and job.profile.structured_output != "json_schema":
        notes.append(
            "It takes no JSON Schema: the prompt asks for the form, and answers that break it count as invalid."
        )
    return (
        f"## {job.profile.name}, as of {job.profile.as_of}\n\n" + "\n".join(f"- {note}" for note in notes)
        if notes
        else ""
    )


def _samples(samples: Sequence[Mapping[str, Any]]) -> str:
    if not samples:
        return ""
    shown = [json.dumps(body, indent=2, ensure_ascii=False)[:_MOST_CHARACTERS] for body in samples]
    longest = max((len(ticks) for body in shown for ticks in re.findall("`+", body)), default=0)
    fence = "`" * max(3, longest + 1)  # a text of backticks stays inside
    return "## The first requests\n\n" + "\n\n".join(f"{fence}json\n{printable(body)}\n{fence}" for body in shown)


def joint_plan(job: str, plans: Mapping[str, Plan]) -> Plan:
    """The plan of a job's variants: what each costs and what all do, and the first of them whole."""
    every = list(plans.values())
    made, costs = [one.output_tokens for one in every], [one.cost_usd for one in every]
    cost = None if None in costs else sum(one or 0.0 for one in costs)
    most = None if None in made else sum(one or 0 for one in made)
    rows = [
        (inline(label), code(one.job), f"{one.sending:,}", f"{one.input_tokens:,}",
         "unknown" if one.output_tokens is None else f"{one.output_tokens:,}", dollars(one.cost_usd))
        for label, one in plans.items()
    ]  # fmt: skip
    sending, given = sum(one.sending for one in every), sum(one.input_tokens for one in every)
    total = ("**all**", "", f"{sending:,}", f"{given:,}", "unknown" if most is None else f"{most:,}", dollars(cost))
    head = ["variant", "job", "requests to send", "input tokens", "output tokens at most", "cost at most"]
    text = "\n\n".join([f"# {job}", table(head, [*rows, total]), every[0].text])
    return Plan(job, every[0].rows, every[0].unsendable, sum(one.requests for one in every),
                sum(one.known for one in every), sending, sum(one.shards for one in every),
                sum(one.bytes for one in every), given, most, cost, every[0].cost_source, text)  # fmt: skip
