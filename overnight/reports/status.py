"""How far a job is: in figures, and as the table of its batches that the page shows. Pure but for the ledger's rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from overnight.errors import JobError
from overnight.ledger.database import Ledger, ledger_exists
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run
from overnight.ledger.states import AT_PROVIDER, State
from overnight.store.home import JobFolder
from overnight.store.objects import address, is_kept
from overnight.text import counted_of, did_you_mean, dollars, duration

_MOST_ROWS = 300


@dataclass(frozen=True)
class JobStatus:
    """A job between its build and its joined table."""

    job: str
    requests: int
    """Distinct requests of the dataset, as it was built last."""
    answered: int
    """Of those: answered or given up, as far as the provider tells."""
    open_batches: int
    """Batches at the provider."""
    unsent: int
    """Shards that wait to be sent."""
    done: bool
    """Whether every request is settled."""
    held: str | None = None
    """Why shards are held back."""
    stopped: str | None = None
    """Why nothing more is sent."""
    in_trouble: int = 0
    """Batches that cannot be collected for now."""
    trouble: str | None = None
    """What is wrong with the first of them."""


def status_of(run: Run) -> JobStatus:
    """Where a job stands now."""
    record = run.ledger.job(run.job.name)
    shards = run.ledger.shards(run.job.name)
    return job_status(run.job.name, shards, record.requests if record else 0, record.stopped if record else None)


def together(job: str, statuses: Iterable[JobStatus]) -> JobStatus:
    """Several jobs as one: the variants of a job."""
    each = list(statuses)
    return JobStatus(
        job,
        sum(one.requests for one in each),
        sum(one.answered for one in each),
        sum(one.open_batches for one in each),
        sum(one.unsent for one in each),
        all(one.done for one in each),
        next((one.held for one in each if one.held), None),
        next((one.stopped for one in each if one.stopped), None),
        sum(one.in_trouble for one in each),
        next((one.trouble for one in each if one.trouble), None),
    )


def status_text(now: JobStatus) -> str:
    """How far a run is, in a few words."""
    if now.done:
        return "joining the answers"
    why = f", held back: {now.held[:60]}" if now.held and not now.open_batches else ""
    more = f", {now.unsent:,} to be sent" if now.unsent else ""
    bad = f", {now.in_trouble:,} in trouble: {(now.trouble or '')[:80]}" if now.in_trouble else ""
    return f"{counted_of(now.open_batches, 'open batch')}{more}{why}{bad}"


def job_status(job: str, shards: Sequence[Shard], requests: int, stopped: str | None = None) -> JobStatus:
    """Adds a job's shards up."""
    waiting = [shard for shard in shards if not shard.settled]
    batches = [batch for shard in waiting if (batch := shard.open_batch)]
    answered = sum((batch.done or 0) + (batch.failed or 0) for batch in batches)
    at_provider = sum(batch.state in AT_PROVIDER and not batch.real_time for batch in batches)
    held = next((shard.hold_reason for shard in waiting if shard.hold_reason and shard.open_batch is None), None)
    bad = [batch for batch in batches if batch.trouble_since is not None]
    left = requests - sum(shard.requests for shard in waiting)
    unsent = sum(not shard.sent for shard in waiting)
    return JobStatus(job, requests, max(0, left + answered), at_provider, unsent, not waiting, held, stopped,
                     len(bad), bad[0].trouble if bad else None)  # fmt: skip


class Sent(NamedTuple):
    """What went out since some time."""

    new: int
    """Requests that were never sent before."""
    again: int
    """Requests that were sent once more, after a verdict that allows it."""


def sent_since(shards: Sequence[Shard], since: float) -> Sent:
    """Counts what a run sent.

    Args:
        shards: all of a job's.
        since: Unix seconds.
    """
    sent = [shard for shard in shards if any((batch.submitted_at or 0.0) >= since for batch in shard.batches)]
    return Sent(sum(one.requests for one in sent if one.attempt == 1 and not one.reask),
                sum(one.requests for one in sent if one.attempt > 1 or one.reask))  # fmt: skip


def batch_rows(shards: Sequence[Shard], now: float) -> list[dict[str, Any]]:
    """What waits, by reason, then one row per batch attempt, open ones last; texts are for people.

    Args:
        shards: all of a job's.
        now: Unix seconds.
    """
    sent = [(shard, b) for shard in shards for b in shard.batches if b.state is not State.REFUSED]
    newest = sorted(sent, key=lambda one: one[1] is one[0].open_batch)[-_MOST_ROWS:]  # those that are open are kept
    return [*_waiting(shards), *(_row(shard, batch, now) for shard, batch in newest)]


def _row(shard: Shard, batch: Batch, now: float) -> dict[str, Any]:
    ended = batch.ended_at or batch.collected_at
    age = (ended or now) - (batch.submitted_at or batch.started_at)
    verdicts = batch.verdicts or {}
    usage = batch.usage or {}
    tokens = usage.get("input_tokens", 0) + usage.get("output_tokens", 0)
    return {
        "file": shard.file_name,
        "status": batch.status or str(batch.state),
        "done": f"{_answered(batch):,} of {shard.requests:,}",
        "age": duration(age),
        "expected": batch.trouble or ("ended" if ended else _expected(shard, batch, now)),
        "tokens": f"{tokens:,}" if tokens else f"about {shard.tokens:,}",
        "cost": dollars(batch.cost_usd) if batch.cost_usd is not None else "–",
        "attempt": shard.attempt,
        "verdicts": ", ".join(f"{count:,} {verdict}" for verdict, count in verdicts.items()),
        "batch": batch.batch_id or "–",
    }


def _waiting(shards: Sequence[Shard]) -> list[dict[str, Any]]:
    """One row for all shards that wait for one reason."""
    groups: dict[str | None, list[Shard]] = {}
    for shard in shards:
        if not shard.settled and shard.open_batch is None:
            groups.setdefault(shard.hold_reason, []).append(shard)
    return [
        {
            "file": counted_of(len(mine), "batch"), "status": f"held back: {why}" if why else "to be sent",
            "done": f"0 of {sum(shard.requests for shard in mine):,}", "age": "–", "expected": "–",
            "tokens": f"about {sum(shard.tokens for shard in mine):,}", "cost": "–", "attempt": mine[0].attempt,
            "verdicts": "", "batch": "–",
        }
        for why, mine in groups.items()
    ]  # fmt: skip


def _answered(batch: Batch) -> int:
    if batch.verdicts is not None:
        return sum(batch.verdicts.values())
    return (batch.done or 0) + (batch.failed or 0)


def _expected(shard: Shard, batch: Batch, now: float) -> str:
    """When a batch may end: as it went so far, else by its deadline at the latest."""
    answered, since = _answered(batch), now - (batch.submitted_at or now)
    if answered and since > 0:
        return f"in {duration(since * (shard.requests - answered) / answered)}" if answered < shard.requests else "now"
    return f"within {duration(batch.deadline_at - now)}" if batch.deadline_at and batch.deadline_at > now else "unknown"


class JobRow(NamedTuple):
    """A job in the list of all jobs; the last three are for people."""

    job: str
    state: str
    rows: int
    requests: int
    answered: int
    batches: int
    """At the provider."""
    cost_usd: float | None
    """Of what was collected so far; None where a price is not known."""
    built_at: float
    """Unix seconds of its last build."""
    waits_for: str
    """What holds it; empty where nothing does."""


def job_rows(home: Path, name: str | None = None) -> list[JobRow]:
    """All jobs of a home, the one that was built last first; only one, where `name` says which.

    Raises:
        JobError: there is no such job.
    """
    ledger = Ledger.of(home) if ledger_exists(home) else None
    names = ledger.jobs() if ledger else []
    if name is not None and name not in names:
        raise JobError(f"no job {name!r} was built in {address(home)}{did_you_mean(name, names)}")
    found = []
    for one in names if name is None else [name]:
        if ledger is not None and (record := ledger.job(one)) is not None:
            shards = ledger.shards(one)
            now = job_status(one, shards, record.requests, record.stopped)
            joined = is_kept(JobFolder(home, one).joined)
            state, why = _state(now, joined=joined)
            found.append(JobRow(one, state, record.rows, now.requests, now.answered, now.open_batches, _cost(shards),
                                record.built_at, why))  # fmt: skip
    return sorted(found, key=lambda row: -row.built_at)


def _state(now: JobStatus, *, joined: bool) -> tuple[str, str]:
    """A job's state in a word or two, and what holds it."""
    if now.done:
        why = "" if joined else "overnight run, or collect, joins its answers"
        return ("stopped" if now.stopped else "done" if joined else "answered"), now.stopped or why
    if now.in_trouble and now.in_trouble == now.open_batches:
        return "in trouble", now.trouble or ""
    if now.open_batches:
        return "at the provider", now.held or ""
    return "held back" if now.held else "to be sent", now.held or "overnight run, or submit, sends it"


def _cost(shards: Sequence[Shard]) -> float | None:
    """USD of all collected batches; None where one's is not known."""
    costs = [batch.cost_usd for shard in shards for batch in shard.batches if batch.state is State.COLLECTED]
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None
