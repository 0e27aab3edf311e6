"""A history: what a seed says that processes, provider, time and people do. Data, so that it can be cut and told."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from simulation.provider import NO_FILE, QUEUE_FULL, Plan
from simulation.world import World

EVIDENCE = ("both", "metadata", "file", "results")
"""By what a batch is known again: metadata and input file (OpenAI), one of them (Mistral, Gemini, xAI; some that speak
OpenAI's form), or its results alone (Anthropic)."""
KINDS = ("submit", "submit", "rescue", "look", "collect", "build")
TROUBLE = ("upload", "list", "retrieve", "missing", "download", "answer", "busy")
LAGS = (0, 20, 140)
"""Seconds until a listing has a batch; the profile waits 180, of which a create call may use 30 before it is sent."""
JUMPS = (5, 25, 65, 200)
LONG_JUMPS = (19 * 3600, 27 * 3600, 30 * 3600)
_MOST_STEPS = 30


class Step(NamedTuple):
    """One thing that happens."""

    text: str
    take: Callable[[World], None]


class History(NamedTuple):
    """What happens until all faults stop."""

    evidence: str
    finish_by: str | None
    plans: tuple[Plan, ...]
    steps: tuple[Step, ...]

    def begin(self) -> World:
        """The world at its beginning."""
        return World(self.evidence, [*self.plans], finish_by=self.finish_by)


def history_of(seed: int) -> History:
    """The history of a seed: the same for the same commit."""
    chance = random.Random(seed)  # noqa: S311 - it keeps no secret
    evidence = chance.choice(EVIDENCE)
    finish_by = chance.choice((None, "20h"))
    plans = tuple(_plan(chance) for _ in range(chance.randint(4, 9)))
    steps = tuple(_step(chance, evidence) for _ in range(chance.randint(1, _MOST_STEPS)))
    return History(evidence, finish_by, plans, steps)


def _plan(chance: random.Random) -> Plan:
    if chance.random() < 1 / 5:
        return Plan(end="failed", errors=chance.choice(((QUEUE_FULL,), (NO_FILE,))), lag=chance.choice(LAGS))
    return Plan(
        reply=chance.choice(("ok", "ok", "lost", "lost", "nothing", "full", "no_file")),
        lag=chance.choice(LAGS),
        end=chance.choice(("completed", "completed", "expired", "cancelled")),
        answered=chance.randint(0, 2),
        drop=chance.randint(-4, 1),
        failing=chance.randint(-4, 1),
    )


def _step(chance: random.Random, evidence: str) -> Step:
    process, kind = chance.randint(0, 1), chance.choice(KINDS)
    name = f"process {'AB'[process]}"
    match chance.choices(range(7), (2, 6, 5, 3, 3, 1, 1))[0]:
        case 0:
            what, times = chance.choice(TROUBLE), chance.randint(1, 3)
            return Step(f"the next {times} calls to {what} fail", lambda world: world.fail(what, times))
        case 1:
            at = chance.choice((None, chance.randint(0, 24)))
            killed = "" if at is None else f", and is killed at its effect {at}"
            return Step(f"{name}: {kind}{killed}", lambda world: world.take_step(process, kind, at))
        case 2:
            at, seconds = chance.randint(0, 6), chance.choice(JUMPS)
            others = [chance.choice(KINDS) for _ in range(chance.randint(0, 4))]
            does = ", ".join(others) or "nothing"
            text = f"{name}: {kind}, stopped at its call {at} while the other does, {seconds} s before each: {does}"
            return Step(text, lambda world: world.stop_in_step(process, kind, at, seconds, others))
        case 3:
            seconds = chance.choice((*JUMPS, *LONG_JUMPS))
            return Step(f"{seconds} s pass", lambda world: world.let_pass(seconds))
        case 4:
            only = chance.choice((None, 0, 1, 2))
            which = "all" if only is None else f"open batch {only}"
            return Step(f"the provider works: {which}", lambda world: world.work(only))
        case 5:
            which_one = chance.randint(0, 5)
            return Step(f"a person cancels batch {which_one}", lambda world: world.cancel_batch(which_one))
        case _:
            requests, lag = chance.randint(1, 2), chance.choice(LAGS if evidence == "results" else (0,))
            text = f"another program makes a batch of {requests} requests"
            return Step(text, lambda world: world.strangers_batch(requests, lag))


def told(history: History) -> str:
    """A history in words."""
    plans = [f"  create {number}: {_planned(plan)}" for number, plan in enumerate(history.plans)]
    steps = [f"  {number}. {step.text}" for number, step in enumerate(history.steps, 1)]
    deadline = f", finish_by {history.finish_by}" if history.finish_by else ""
    head = f"batches are known again by {history.evidence}{deadline}; six rows, two in a batch"
    return "\n".join(
        [head, *plans, *steps, "  then no call fails any more, and one process runs the job to its end, twice"]
    )


def _planned(plan: Plan) -> str:
    said = f"reply {plan.reply}, listed after {plan.lag} s, ends {plan.end}"
    lines = f", line {plan.drop} left out" if plan.drop >= 0 else ""
    lines += f", line {plan.failing} fails" if plan.failing >= 0 else ""
    worked = f", {plan.answered} worked on" if plan.end in ("expired", "cancelled") else ""
    return said + worked + lines
