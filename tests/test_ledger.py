"""The ledger: a state machine, one transaction a step, and a lease that dies with its process."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import ExitStack
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from overnight.errors import JobBusy, LedgerError
from overnight.job.job import Job
from overnight.ledger.database import Ledger
from overnight.ledger.lease import leased
from overnight.ledger.records import JobRecord, NewShard, Shard
from overnight.ledger.states import AT_PROVIDER, OPEN, STEPS, State
from overnight.limits.queue import TokenQueue, learned_limit, named_limit, next_release, pauses, too_large, wave

RECORD = JobRecord("job", {}, {"model": "m"}, "print", 10, 10, 1.0)


def new_shard(number: int = 0, **fields: Any) -> NewShard:
    known: dict[str, Any] = {
        "round": 1,
        "number": number,
        "key": f"k{number}",
        "requests": 5,
        "bytes": 500,
        "tokens": 100,
    }
    return NewShard(**known | {"model": "m", "url": "/v1/chat/completions"} | fields)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(f"sqlite:///{tmp_path / 'ledger.db'}")


def planned(ledger: Ledger, *shards: NewShard) -> list[Shard]:
    ledger.plan(RECORD, shards or [new_shard()])
    return ledger.shards("job")


PATHS = {
    State.UPLOADING: [],
    State.UPLOADED: [State.UPLOADED],
    State.CREATING: [State.UPLOADED, State.CREATING],
    State.UNKNOWN: [State.UPLOADED, State.CREATING, State.UNKNOWN],
    State.SUBMITTED: [State.UPLOADED, State.CREATING, State.SUBMITTED],
    State.LOST: [State.UPLOADED, State.CREATING, State.SUBMITTED, State.LOST],
    State.ENDED: [State.UPLOADED, State.CREATING, State.SUBMITTED, State.ENDED],
    State.COLLECTED: [State.UPLOADED, State.CREATING, State.SUBMITTED, State.ENDED, State.COLLECTED],
    State.REFUSED: [State.UPLOADED, State.CREATING, State.REFUSED],
}


@pytest.mark.parametrize(("at", "to"), list(product(State, State)), ids=str)
def test_an_attempt_takes_the_steps_of_the_state_machine_and_no_others(ledger: Ledger, at: State, to: State) -> None:
    batch = ledger.start_attempt(planned(ledger)[0].id, 1.0)
    for step in PATHS[at]:
        batch = ledger.move(batch, step)
    if to in STEPS[at]:
        assert ledger.move(batch, to).state is to
    else:
        with pytest.raises(LedgerError, match="cannot go from"):
            ledger.move(batch, to)


def test_every_state_can_be_reached_and_every_open_one_can_be_left() -> None:
    reached = {State.UPLOADING}.union(*STEPS.values())
    assert reached == set(State)
    assert {state for state in State if STEPS[state]} == OPEN
    assert AT_PROVIDER < OPEN


def test_a_step_that_another_process_took_first_is_refused(ledger: Ledger) -> None:
    batch = ledger.start_attempt(planned(ledger)[0].id, 1.0)
    ledger.move(batch, State.UPLOADED, file_id="f")
    with pytest.raises(LedgerError, match="another process moved it on"):
        ledger.move(batch, State.UPLOADED, file_id="g")


def test_a_shard_has_one_open_attempt_at_a_time(ledger: Ledger) -> None:
    (shard,) = planned(ledger)
    ledger.start_attempt(shard.id, 1.0)
    with pytest.raises(LedgerError, match="has an open attempt"):
        ledger.start_attempt(shard.id, 2.0)


def test_settling_and_planning_the_rest_is_one_step(ledger: Ledger) -> None:
    (shard,) = planned(ledger)
    batch = ledger.start_attempt(shard.id, 1.0)
    for step in PATHS[State.ENDED]:
        batch = ledger.move(batch, step)
    with pytest.raises(LedgerError, match="UNIQUE"):
        ledger.settle(batch, 2.0, {"verdicts": {"succeeded": 4, "retryable": 1}}, [new_shard(7), new_shard(7)], "job")
    assert not ledger.shard(shard.id).settled
    ledger.settle(batch, 2.0, {"verdicts": {"succeeded": 4, "retryable": 1}}, [new_shard(7, round=2, attempt=2)], "job")
    first, second = ledger.shards("job")
    assert (first.settled, first.batches[0].verdicts) == (True, {"succeeded": 4, "retryable": 1})
    assert (second.settled, second.attempt, second.file_name) == (False, 2, "0002-0007.jsonl")


def test_the_reply_to_a_create_that_was_given_up_is_not_taken_for_that_of_the_next(ledger: Ledger) -> None:
    batch = ledger.move(ledger.start_attempt(planned(ledger)[0].id, 1.0), State.UPLOADED, file_id="f")
    with leased(ledger, "job") as owner:
        slow = ledger.begin_create(batch, owner, time.time())
        ledger.begin_create(ledger.move(slow, State.UNKNOWN), owner, time.time())
        with pytest.raises(LedgerError, match="another process moved it on"):
            ledger.move(slow, State.SUBMITTED, batch_id="b")
        ledger.refuse(slow, 2.0, 2.0, "full")
    (again,) = ledger.shards("job")[0].batches
    assert (again.state, again.creates) == (State.CREATING, 2)


def test_the_paid_call_needs_the_lease(ledger: Ledger) -> None:
    batch = ledger.start_attempt(planned(ledger)[0].id, 1.0)
    batch = ledger.move(batch, State.UPLOADED, file_id="f")
    with leased(ledger, "job") as owner:
        with pytest.raises(LedgerError, match="lost its lease"):
            ledger.begin_create(batch, "somebody else", time.time())
        with pytest.raises(LedgerError, match="lost its lease"):
            ledger.begin_create(batch, owner, time.time() + 3600)
        assert ledger.begin_create(batch, owner, time.time()).state is State.CREATING


def test_one_process_at_a_time_has_the_lease(ledger: Ledger) -> None:
    with ExitStack() as held:
        held.enter_context(leased(ledger, "job"))
        held.enter_context(leased(ledger, "other job"))
        with pytest.raises(JobBusy, match="is at work on the job 'job'"):
            held.enter_context(leased(ledger, "job"))
    with leased(ledger, "job"):
        pass


def test_the_lease_of_a_killed_process_is_free_at_once(ledger: Ledger, tmp_path: Path) -> None:
    script = (
        "import os, signal\nfrom overnight.ledger.database import Ledger\nfrom overnight.ledger.lease import leased\n"
        f"with leased(Ledger('sqlite:///{tmp_path}/ledger.db'), 'job'):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    assert ledger.acquire("job", "look", time.time(), time.time()) is not None
    with leased(ledger, "job"):
        pass


def test_a_lease_of_another_machine_runs_out(ledger: Ledger) -> None:
    ledger.acquire("job", "elsewhere:1:abc", time.time(), time.time() + 0.3)
    with pytest.raises(JobBusy, match="process 1 on elsewhere"), leased(ledger, "job"):
        pass
    with leased(ledger, "job", patience=10):
        pass


def job(**limits: Any) -> Job:
    task = {"kind": "complete", "prompt": "{{ x }}"}
    return Job.model_validate({"name": "job", "task": task, "model": "m", "limits": limits})


def at_state(ledger: Ledger, shard: Shard, state: State) -> None:
    batch = ledger.start_attempt(shard.id, 1.0)
    for step in PATHS[state]:
        batch = ledger.move(batch, step)


def due(ledger: Ledger, made: Job, now: float = 10.0) -> list[int]:
    shards = ledger.shards("job")
    budgets = {"m": TokenQueue(made.limits.max_enqueued_tokens, ledger.enqueued("", "m"))}
    return [shard.number for shard in wave(shards, made, now, budgets).go]


@pytest.mark.parametrize(
    ("limits", "states", "chosen"),
    [
        pytest.param({}, {}, [0, 1, 2, 3], id="all"),
        pytest.param({"max_open_batches": 2}, {}, [0, 1], id="two open at a time"),
        pytest.param({"max_open_batches": 2}, {0: State.SUBMITTED}, [1], id="one is open"),
        pytest.param({"max_open_batches": 1}, {0: State.SUBMITTED, 1: State.CREATING}, [1], id="one may be open"),
        pytest.param({"max_enqueued_tokens": 250}, {}, [0, 1], id="token budget"),
        pytest.param({"max_enqueued_tokens": 250}, {0: State.SUBMITTED, 1: State.ENDED}, [2], id="budget in use"),
        pytest.param({"max_enqueued_tokens": 50}, {}, [0], id="one alone always goes"),
        pytest.param({}, {0: State.UPLOADING, 1: State.UNKNOWN}, [0, 1, 2, 3], id="what was begun comes first"),
        pytest.param({}, dict.fromkeys(range(4), State.SUBMITTED), [], id="all are open"),
    ],
)
def test_which_shards_go_out(
    ledger: Ledger, limits: dict[str, int], states: dict[int, State], chosen: list[int]
) -> None:
    for number, shard in enumerate(planned(ledger, *(new_shard(n) for n in range(4)))):
        if number in states:
            at_state(ledger, shard, states[number])
    assert due(ledger, job(**limits)) == chosen


def test_held_shards_wait_for_their_time(ledger: Ledger) -> None:
    first, _ = planned(ledger, new_shard(0), new_shard(1))
    ledger.hold(first.id, 20.0, "the queue is full")
    shards = ledger.shards("job")
    assert next_release(shards, 10.0) == 10.0
    assert due(ledger, job(), 10.0) == []
    assert due(ledger, job(), 20.0) == [0, 1]


def test_pauses_grow_to_ten_times_the_first() -> None:
    found = [pause for pause, _ in zip(pauses(2.0), range(50), strict=False)]
    assert 1.6 <= found[0] <= 2.4
    assert all(16 <= pause <= 24 for pause in found[10:])


def test_an_unknown_limit_is_felt_for_one_batch_at_a_time(ledger: Ledger) -> None:
    first, *_ = planned(ledger, *(new_shard(n) for n in range(3)))
    careful = Job.model_validate(job().model_dump() | {"provider": {"profile": "openai"}})
    assert due(ledger, careful) == [0]
    at_state(ledger, first, State.SUBMITTED)
    assert due(ledger, careful) == []
    (batch,) = ledger.shard(first.id).batches
    ledger.note(batch, status="in_progress")
    assert due(ledger, careful) == [1]


@pytest.mark.parametrize(
    ("message", "limit"),
    [
        ("Enqueued token limit reached for m in organization o. Limit: 90,000 enqueued tokens. Please", 90_000),
        ("limit is 2_000_000 tokens", 2_000_000),
        ("the queue is full", None),
    ],
)
def test_a_refusal_may_name_the_limit(message: str, limit: int | None) -> None:
    assert named_limit(message) == limit


@pytest.mark.parametrize(
    ("message", "others", "refused", "limit"),
    [
        pytest.param("Limit: 105 tokens", 0, 0, 50, id="alone and above the named limit: halved"),
        pytest.param("Limit: 40 tokens", 0, 0, 40, id="alone and far above it"),
        pytest.param("Limit: 900 tokens", 0, 0, None, id="alone and below it: others fill the queue"),
        pytest.param("Limit: 900 tokens", 0, 1, 50, id="alone and below it again: the count is another"),
        pytest.param("full", 0, 0, 50, id="alone, no limit named: halved"),
        pytest.param("full", 300, 0, 360, id="beside others: a little less than that"),
        pytest.param("Limit: 350 tokens", 300, 0, 350, id="beside others, named"),
    ],
)
def test_what_a_refusal_teaches(ledger: Ledger, message: str, others: int, refused: int, limit: int | None) -> None:
    (shard,) = planned(ledger)
    for _ in range(refused):
        at_state(ledger, shard, State.REFUSED)
    assert learned_limit(message, ledger.shard(shard.id), others) == limit


def test_a_shard_above_the_limit_is_cut_unless_it_is_one_request(ledger: Ledger) -> None:
    planned(ledger, new_shard(0), new_shard(1, requests=1), new_shard(2, tokens=10))
    found = too_large(ledger.shards("job"), {"m": TokenQueue(50, 0)})
    assert [shard.number for shard in found] == [0]


def test_a_learned_limit_is_forgotten_after_a_day(ledger: Ledger) -> None:
    ledger.learn_limit("p", "m", 100, now=0.0)
    ledger.learn_limit("p", "m", 90, now=10.0)
    assert ledger.learned_limit("p", "m", now=86_000.0) == 90
    assert ledger.learned_limit("p", "other", now=20.0) is None
    assert ledger.learned_limit("p", "m", now=90_000.0) is None
