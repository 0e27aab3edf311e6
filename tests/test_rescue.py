"""Deadline rescue: what batches have not answered in time is asked for in real time, and nothing is paid twice for it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.answers.journal import Journal, begin_journal
from overnight.errors import JobError, LeaseLost, ProviderError
from overnight.job.clock import finish_at
from overnight.job.jobfile import load_job
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run, open_run
from overnight.ledger.states import State
from overnight.limits.rescue import cancel_at, rescue_at, to_rescue
from overnight.providers.connect import connect
from overnight.reports.dry_run import plan_job
from overnight.reports.report import billed, report_text
from tasks.cancel import stop_sending
from tasks.recover import recover
from tasks.report import summarize
from tasks.rescue import Rescue
from tests.conftest import ROOT, MakeJob, ProviderProcess
from tests.steps import advance, age, build, connected, finish, provider_of, without_ledger

pytestmark = pytest.mark.usefixtures("dialect_key")
DAY = 86_400.0
DUE = 20 * 3600 - 600
"""Seconds after a build with `finish_by: 20h` at which its requests go to real time."""
LIMITS = {"finish_by": "20h", "poll_seconds": 0.01, "max_requests": 3}
TEXTS: list[str | None] = [f"t{n}" for n in range(8)]


@pytest.mark.parametrize(
    ("finish_by", "begun", "end"),
    [
        ("20h", "2026-11-27T10:00", "2026-11-28T06:00"),
        ("06:00 UTC", "2026-11-27T05:59", "2026-11-27T06:00"),
        ("06:00 UTC", "2026-11-27T06:00", "2026-11-28T06:00"),
        ("06:00 Europe/Berlin", "2026-11-27T04:00", "2026-11-27T05:00"),
        ("06:00 Europe/Berlin", "2026-03-28T12:00", "2026-03-29T04:00"),  # the night in which clocks go forward
    ],
)
def test_a_job_is_to_be_done_by_a_clock_or_after_hours(finish_by: str, begun: str, end: str) -> None:
    at = datetime.fromisoformat(begun).replace(tzinfo=UTC).timestamp()
    assert datetime.fromtimestamp(finish_at(finish_by, at), UTC).isoformat()[:16] == end


@pytest.mark.parametrize("finish_by", ["soon", "6:00", "24:00", "0h", "06:00 Middle/Earth", "06:00 ../etc"])
def test_a_time_that_is_none_is_refused_with_the_job(finish_by: str) -> None:
    fields = {
        "name": "a",
        "task": {"kind": "generate", "prompt": "x"},
        "model": "m",
        "limits": {"finish_by": finish_by},
    }
    with pytest.raises(JobError, match="finish_by"):
        load_job(fields)


def job_of(profile: str = "openai", **limits: Any) -> Any:
    fields = {"name": "a", "task": {"kind": "generate", "prompt": "x"}, "model": "m", "provider": {"profile": profile}}
    return load_job(fields | {"limits": {"finish_by": "10h", **limits}})


def shard(number: int, requests: int, *batches: Batch, settled: bool = False) -> Shard:
    about = {"round": 1, "number": number, "key": "k", "bytes": 9, "tokens": 9, "model": "m", "url": "u"}
    return Shard(id=number, job="a", settled=settled, hold_until=None, hold_reason=None, requests=requests,
                 batches=batches, **about)  # type: ignore[arg-type]  # fmt: skip


def batch(state: State, *, real_time: bool = False, collected_at: float | None = None) -> Batch:
    return Batch(
        id=1, shard_id=1, token="t", state=state, started_at=0.0, real_time=real_time, collected_at=collected_at
    )


@given(st.lists(st.tuples(st.integers(1, 50_000), st.booleans()), max_size=6), st.integers(1, 256))
def test_the_time_for_it_never_moves_away_as_answers_come(sizes: list[tuple[int, bool]], concurrency: int) -> None:
    job = job_of(rescue_concurrency=concurrency)
    before = [shard(n, size) for n, (size, _) in enumerate(sizes)]
    after = [
        shard(n, size, batch(State.COLLECTED, collected_at=200.0), settled=True) if done else before[n]
        for n, (size, done) in enumerate(sizes)
    ]
    found = rescue_at(job, before, 100.0)
    assert found is not None
    assert 100 + 5 * 3600 <= found < 100 + 10 * 3600
    assert rescue_at(job, [*after, shard(9, 5)], 100.0) <= rescue_at(job, after, 100.0) == found  # type: ignore[operator]


def test_only_what_has_no_batch_goes_to_real_time() -> None:
    shards = [
        shard(0, 1),
        shard(1, 1, batch(State.UPLOADED)),
        shard(2, 1, batch(State.CREATING)),
        shard(3, 1, batch(State.UNKNOWN)),
        shard(4, 1, batch(State.SUBMITTED)),
        shard(5, 1, batch(State.LOST)),
        shard(6, 1, batch(State.ENDED)),
        shard(7, 1, batch(State.CREATING, real_time=True)),
        shard(8, 1, batch(State.ENDED, real_time=True)),
        shard(9, 1, settled=True),
        shard(10, 1, batch(State.REFUSED)),
    ]
    assert [one.number for one in to_rescue(shards, 0.0)] == [0, 1, 7, 10]
    held = [replace(shard(0, 1, batch(State.REFUSED, real_time=asked)), hold_until=9.0) for asked in (True, False)]
    assert to_rescue(held, 8.0) == held[1:]
    assert to_rescue(held, 9.0) == held


@pytest.mark.parametrize(
    ("profile", "rescue_from", "deadline", "cancelled"),
    [("openai", 5.0, 9.0, 5.0), ("openai", 9.0, 5.0, 5.0), ("openai", 5.0, None, 5.0), ("openai", None, 9.0, 9.0),
     ("gemini", 5.0, 9.0, 9.0)],
)  # fmt: skip
def test_a_batch_is_cancelled_for_it_where_what_it_answered_is_kept(
    profile: str, rescue_from: float | None, deadline: float | None, cancelled: float
) -> None:
    assert cancel_at(job_of(profile), rescue_from, deadline) == cancelled


@given(st.lists(st.tuples(st.sampled_from("san"), st.integers(0, 3)), max_size=20), st.integers(0, 60))
def test_a_journal_that_was_cut_anywhere_tells_what_it_told_before(steps: list[tuple[str, int]], cut: int) -> None:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"journal-{os.getpid()}.jsonl"
    path.unlink(missing_ok=True)
    begin_journal(path)
    sizes, states = [0], [(set[str](), set[str]())]
    with Journal(path) as journal:
        for kind, number in steps:
            name = f"id-{number}"
            {"s": journal.sent, "n": journal.not_taken}.get(
                kind, lambda one: journal.answer(b'{"custom_id":"%s","response":{}}\n' % one.encode())
            )(name)
            sizes.append(path.stat().st_size)
            states.append((set(journal.in_doubt), set(journal.answered)))
    with path.open("r+b") as file:
        file.truncate(max(0, sizes[-1] - cut))
    whole = max(at for at, size in enumerate(sizes) if size <= path.stat().st_size)
    with Journal(path) as again:
        assert (again.in_doubt, again.answered) == states[whole]
        again.sent("later")
    with Journal(path) as again:
        assert "later" in again.in_doubt
    path.unlink()


def rescued(run: Run) -> pd.DataFrame:
    """Lets the time for it come, and the job end."""
    age(run, DUE)
    finish(run)
    return pd.read_parquet(run.folder.joined)


@pytest.mark.parametrize("profile", ["openai", "mistral", "anthropic"])
def test_a_batch_that_is_late_is_cancelled_and_what_it_lacks_is_asked_in_real_time(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, profile: str
) -> None:
    """Three batches: one answers all, one a part of it once it is cancelled, one is never sent."""
    slow = {"polls": 10_000, "answer": 1, "end": "completed"}
    provider_server.order(batches=[{}, slow])
    job = make_job(TEXTS, provider=provider_of(profile, provider_server), limits=LIMITS | {"max_open_batches": 2})
    run = build(job, tmp_path / "home")
    advance(run)
    table = rescued(run)
    assert table["answer"].to_list() == [f"echo: {text}" for text in TEXTS]
    books = provider_server.books()
    assert set(books["billed"].values()) == {1}
    assert set(books["asked"].values()) == {1}
    assert len(books["billed"]) + len(books["asked"]) == len(TEXTS)
    assert table["batch_id"].str.startswith("real-time-").sum() == len(books["asked"]) > 0


def test_gemini_is_asked_in_openais_form_with_a_key_as_openai_takes_it(
    provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {"model": "g", "messages": [{"role": "user", "content": "hi"}]}}\n'
    monkeypatch.setenv("OPENAI_ORG_ID", "somebody's")
    with connected("gemini", provider_server, tmp_path) as provider:
        assert b"echo: hi" in provider.answer(line)
        sent = provider._real_time_client()._client.build_request(
            "GET", "/", headers={"OpenAI-Organization": "somebody's"}
        )
        for hook in provider._real_time_client()._client.event_hooks["request"]:
            hook(sent)
        assert "OpenAI-Organization" not in sent.headers
    assert provider_server.books()["asked"] == {"hi": 1}


def test_where_a_cancelled_batch_may_keep_nothing_it_is_waited_for(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(batches=[{"polls": 4}])
    limits = LIMITS | {"max_open_batches": 1, "max_enqueued_tokens": 10_000}
    job = make_job(TEXTS[:5], provider=provider_of("gemini", provider_server), limits=limits)
    run = build(job, tmp_path / "home")
    advance(run)
    table = rescued(run)
    books = provider_server.books()
    assert "cancel" not in books["calls"]
    assert sorted(books["asked"].values()) == [1, 1]
    assert table["answer"].notna().all()


def test_nothing_goes_to_real_time_before_it_is_time(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run = build(make_job(TEXTS, limits=LIMITS), tmp_path / "home")
    finish(run)
    assert provider_server.books()["asked"] == {}


BUSY = {"error": {"message": "busy", "type": "overloaded_error"}}


@pytest.mark.parametrize(
    ("fault", "verdict", "asked"),
    [
        ({"status": 429, "headers": {"Retry-After": "0"}, "body": BUSY, "times": 3}, "succeeded", 1),
        ({"status": 503, "headers": {"Retry-After": "0"}, "body": BUSY}, "succeeded", 1),
        ({"status": 529, "headers": {"Retry-After": "0"}, "body": BUSY}, "succeeded", 1),
        ({"status": 503, "effect": True}, "missing", 1),
        ({"status": 502, "body": "<html>", "effect": True}, "missing", 1),
        ({"status": 504, "body": BUSY, "effect": True}, "missing", 1),
        ({"status": 500, "effect": True}, "missing", 1),
        ({"status": 408, "body": BUSY, "effect": True}, "missing", 1),
        ({"cut": "before", "effect": True}, "missing", 1),
        ({"status": 200, "body": "<html>", "effect": True}, "missing", 1),
    ],
)
def test_a_request_in_real_time_is_never_paid_twice(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, fault: dict[str, Any], verdict: str, asked: int
) -> None:
    provider_server.order(faults=[{"call": "ask", **fault}])
    run = build(make_job(["a"], limits=LIMITS), tmp_path / "home")
    table = rescued(run)
    assert (table["status"].to_list(), provider_server.books()["asked"]) == ([verdict], {"a": asked})
    again = build(make_job(["a"], limits=LIMITS), tmp_path / "home")  # another night, with the same rows
    assert all(one.settled for one in again.ledger.shards("texts"))


BALANCE = {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low"}}
KEY = [
    {"error": {"code": 400, "message": "API key not valid. Please pass a valid API key.", "status": "INVALID_ARGUMENT"}}
]


@pytest.mark.parametrize(
    ("status", "body"),
    [(402, BUSY), (401, BUSY), (400, BALANCE), (400, KEY), (404, BUSY), (405, BUSY), (403, BUSY)],
)
def test_what_every_request_of_an_account_is_refused_for_settles_no_row(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, status: int, body: Any
) -> None:
    provider_server.order(faults=[{"call": "ask", "status": status, "body": body, "times": 99}])
    run = build(make_job(["a", "b"], limits=LIMITS), tmp_path / "home")
    age(run, DUE)
    with pytest.raises(ProviderError):
        advance(run)
    assert not any(one.settled for one in run.ledger.shards("texts"))
    provider_server.order(forgive=True)
    age(run, 60)
    assert finish(run).statuses == {"succeeded": 2}
    assert provider_server.books()["asked"] == {"a": 1, "b": 1}


def test_a_request_that_is_refused_alone_keeps_no_other_from_its_answer(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "ask", "status": 403, "body": BUSY}])
    run = build(make_job(["a", "b"], limits=LIMITS | {"rescue_concurrency": 1}), tmp_path / "home")
    table = rescued(run)
    assert table["status"].to_list() == ["failed", "succeeded"]


def test_an_error_in_a_list_is_an_error_and_no_lost_reply(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    body = [{"error": {"code": 400, "message": "the prompt is odd, says secret"}}]
    provider_server.order(key="secret", faults=[{"call": "ask", "status": 400, "body": body}])
    provider = provider_of("gemini", provider_server)
    run = build(make_job(["a"], limits=LIMITS | {"max_enqueued_tokens": 9999}, provider=provider), tmp_path / "home")
    table = rescued(run)
    assert table["status"].to_list() == ["failed"]
    assert table["error_message"].to_list() == ["the prompt is odd, says ***"]


def test_what_waits_for_a_provider_uses_no_attempt_up(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    busy = {"call": "ask", "status": 429, "headers": {"Retry-After": "0"}, "body": BUSY, "times": 3 * 8}
    provider_server.order(faults=[busy])
    run = build(make_job(["a"], limits=LIMITS | {"max_attempts": 1}), tmp_path / "home")
    age(run, DUE)
    for _ in range(3):
        advance(run)
        age(run, 60)
    assert provider_server.books()["calls"]["ask"] == 3 * 8
    assert finish(run).statuses == {"succeeded": 1}


def test_a_batch_that_is_cancelled_for_it_uses_no_attempt_up_and_is_not_halved(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 10_000, "answer": 0})
    provider = provider_of("openai", provider_server)
    run = build(
        make_job(TEXTS, limits=LIMITS | {"max_attempts": 1, "max_requests": 8}, provider=provider), tmp_path / "h"
    )
    advance(run)
    assert rescued(run)["status"].to_list() == ["succeeded"] * 8
    asked = [one for shard in run.ledger.shards("texts") for one in shard.batches if one.real_time]
    assert len(asked) == 1


def test_a_canary_that_is_rescued_may_cost_what_real_time_costs(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider = provider_of("openai", provider_server) | {"prices": {"input": 1.0, "output": 10.0}}
    limits = LIMITS | {"canary_rows": 2}
    job = make_job(TEXTS, provider=provider, limits=limits, parameters={"max_tokens": 5}, model="m")
    assert rescued(build(job, tmp_path / "home"))["status"].to_list() == ["succeeded"] * 8


def test_whoever_removes_the_deadline_has_nothing_more_asked_in_real_time(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = LIMITS | {"rescue_concurrency": 1}
    run = build(make_job(TEXTS[:3], limits=limits), tmp_path / "home")
    left_in_the_middle(run, monkeypatch)
    asked = provider_server.books()["asked"]
    assert asked == {"t0": 1, "t1": 1, "t2": 1}
    (shard,) = run.ledger.shards("texts")
    assert shard.in_real_time
    del limits["finish_by"]
    run = build(make_job([*TEXTS[:3], "new"], limits=limits), tmp_path / "home")
    assert finish(run).statuses == {"succeeded": 4}
    assert provider_server.books()["asked"] == asked


def left_in_the_middle(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asks for everything, and loses the lease before the attempt has ended."""

    def lose(*_: Any) -> None:
        raise LeaseLost("as ordered")

    age(run, DUE)
    with monkeypatch.context() as patched:
        patched.setattr(Rescue, "_end", lose)
        with pytest.raises(LeaseLost):
            advance(run)


def test_errors_of_a_request_are_judged_as_in_a_batch(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run = build(make_job(["[400]", "[500 once]", "fine"], limits=LIMITS), tmp_path / "home")
    table = rescued(run)
    assert table["status"].to_list() == ["failed", "succeeded", "succeeded"]
    assert provider_server.books()["asked"] == {"[400]": 1, "[500 once]": 2, "fine": 1}


def test_an_account_that_cannot_pay_stops_it_and_what_was_answered_is_kept(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider = provider_of("openai", provider_server)
    run = build(make_job(["a", "b"], limits=LIMITS | {"rescue_concurrency": 1}, provider=provider), tmp_path / "home")
    age(run, DUE)
    body = {"error": {"message": "You exceeded your current quota", "code": "insufficient_quota"}}
    provider_server.order(faults=[{"call": "ask", "status": 429, "body": body}])
    with pytest.raises(ProviderError, match="cannot pay"):
        advance(run)
    age(run, 60)
    provider_server.order(faults=[{"call": "ask", "status": 402}])
    with pytest.raises(ProviderError, match="cannot pay"):
        advance(run)
    assert finish(run).statuses == {"succeeded": 2}
    assert provider_server.books()["asked"] == {"a": 1, "b": 1}


def test_what_the_journal_of_a_lost_machine_knew_is_not_sent_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = build(make_job(["a", "b"], limits=LIMITS), tmp_path / "home")
    left_in_the_middle(run, monkeypatch)
    (journal,) = run.folder.responses.glob("*.journal.jsonl")
    journal.unlink()
    asked = provider_server.books()["asked"]
    assert finish(run).statuses == {"missing": 2}
    assert provider_server.books()["asked"] == asked
    resubmit = make_job(["a", "b"], limits=LIMITS | {"resubmit_lost": True})
    assert finish(build(resubmit, run.home)).statuses == {"succeeded": 2}


@pytest.mark.parametrize("ended", [True, False], ids=["with its output", "with its journal"])
def test_after_a_lost_ledger_what_was_asked_in_real_time_is_taken_up_and_not_asked_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, monkeypatch: pytest.MonkeyPatch, ended: bool
) -> None:
    job = make_job(TEXTS[:5], limits=LIMITS)
    run = build(job, tmp_path / "home")
    if ended:
        rescued(run)
    else:
        left_in_the_middle(run, monkeypatch)
    asked = provider_server.books()["asked"]
    run = without_ledger(job, run.home)
    with connect(run.job.profile, run.home) as provider:
        recover(run, provider, unsent=not ended)
    table = rescued(build(job, run.home))
    assert table["answer"].to_list() == [f"echo: {text}" for text in TEXTS[:5]]
    assert provider_server.books()["asked"] == {f"t{n}": 1 for n in range(5)}
    assert asked.items() <= provider_server.books()["asked"].items()


def test_a_recovery_that_is_killed_in_the_middle_takes_them_up_the_next_time(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(["a", "b"], limits=LIMITS)
    run = build(job, tmp_path / "home")
    rescued(run)
    run = without_ledger(job, run.home)
    with connect(run.job.profile, run.home) as provider:
        with monkeypatch.context() as patched:
            patched.setattr("overnight.ledger.database.Ledger.adopt", killed)
            with pytest.raises(KeyboardInterrupt):
                recover(run, provider)
        assert recover(run, provider).batches == 1
    assert rescued(build(job, run.home))["answer"].to_list() == ["echo: a", "echo: b"]
    assert provider_server.books()["asked"] == {"a": 1, "b": 1}


def killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_cancellation_is_heard_while_requests_are_asked(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who holds the lease, in the middle of a shard; the next shard is not begun."""
    run = build(make_job(TEXTS[:5], limits=LIMITS | {"rescue_concurrency": 1}), tmp_path / "home")
    ask_one = Rescue._ask_one

    def ask_and_cancel(self: Rescue, *args: Any) -> None:
        ask_one(self, *args)
        run.ledger.ask_to_stop("texts", "the job was cancelled")
        assert self._ended.wait(30)

    monkeypatch.setattr("tasks.rescue._LOOK_SECONDS", 0.01)
    monkeypatch.setattr(Rescue, "_ask_one", ask_and_cancel)
    age(run, DUE)
    advance(run)
    assert provider_server.books()["asked"] == {"t0": 1}
    assert finish(run).statuses["succeeded"] == 1
    assert provider_server.books()["asked"] == {"t0": 1}


def test_a_job_that_is_stopped_ends_with_what_was_answered(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run = build(make_job(TEXTS[:3], limits=LIMITS | {"rescue_concurrency": 1}), tmp_path / "home")
    age(run, DUE)
    provider_server.order(faults=[{"call": "ask", "status": 402}])
    with pytest.raises(ProviderError):
        advance(run)
    stop_sending(run)
    before = provider_server.books()["asked"]
    statuses = finish(run).statuses
    assert statuses["succeeded"] == len(before)
    assert sum(statuses.values()) == 3
    assert provider_server.books()["asked"] == before


def test_a_budget_holds_at_list_price_and_the_report_says_what_was_rescued(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider = provider_of("openai", provider_server) | {"prices": {"input": 10.0, "output": 10.0}}
    limits = LIMITS | {"budget_usd": 0.05, "max_requests": 1}
    job = make_job(TEXTS, provider=provider, limits=limits, parameters={"max_tokens": 100}, model="gpt-4o-mini")
    plan = plan_job(open_run(job, home=str(tmp_path / "home")))
    assert plan.cost_usd == pytest.approx(2 * 10e-6 * (plan.input_tokens + 800))
    assert "at the worst all of it, for $" in plan.text
    run = build(job, tmp_path / "home")
    age(run, DUE)
    tally = finish(run)
    # Ten input and five output tokens each, at twice the batch price.
    answered = sum(provider_server.books()["asked"].values())
    shards = run.ledger.shards("texts")
    assert billed(run.job, shards) == pytest.approx(answered * 15 * 10e-6 * 2)
    report = report_text(summarize(run, tally, shards, 1.0), tally, shards, run.job)
    assert f"| rescued in real time | {answered} of {answered} requests, for $0.00240 |" in report
    assert "saved" not in report
    (first, *_) = [one for shard in run.ledger.shards("texts") for one in shard.batches if one.real_time]
    assert first.rates is not None
    assert first.rates["source"].endswith("in real time")


def test_a_budget_without_a_price_of_real_time_is_refused(make_job: MakeJob, provider_server: ProviderProcess) -> None:
    provider = provider_of("custom", provider_server) | {"prices": {"input": 1.0, "output": 1.0}}
    job = make_job(["a"], provider=provider, limits=LIMITS | {"budget_usd": 1}, parameters={"max_tokens": 9})
    with pytest.raises(JobError, match=r"limits\.finish_by with limits\.budget_usd needs the price of real time"):
        plan_job(open_run(job))


_DRIVER = """
import os, signal, sys
from overnight.answers.journal import Journal
from overnight.ledger.run import recorded_run
from tests.crash_driver import kill_at_step
from tests.steps import finish

home, where = sys.argv[1:]


def die_at_entry(number):
    write, entries = Journal._write, 0

    def dying(self, entry, line=None):
        nonlocal entries
        entries += 1
        if entries == number and where == "journal, before":
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, entry, line)
        if entries == number:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal._write = dying


for number in (1, 2, 3, 1, 2, 3, 4, 5, 6, 10_000):
    if (child := os.fork()) == 0:
        if where.startswith("ledger"):
            kill_at_step(number, before=where == "ledger, before")
        else:
            die_at_entry(number)
        finish(recorded_run("texts", home))
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    if not os.WIFSIGNALED(status):
        sys.exit(os.waitstatus_to_exitcode(status))
    print("killed")
"""


@pytest.mark.parametrize("where", ["ledger, before", "ledger, after", "journal, before", "journal, after"])
def test_killed_at_any_step_each_request_is_asked_once_and_what_is_in_doubt_is_told(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, where: str
) -> None:
    run = build(make_job(TEXTS[:5], limits=LIMITS | {"rescue_concurrency": 1}), tmp_path / "home")
    age(run, DUE)
    command = [sys.executable, "-c", _DRIVER, str(run.home), where]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
    kills = ended.stdout.count("killed")
    assert kills >= 3
    table = pd.read_parquet(run.folder.joined)
    asked = provider_server.books()["asked"]
    assert set(asked.values()) <= {1}
    doubted = table[table["status"] == "missing"]
    assert len(doubted) <= kills
    assert set(doubted["error_code"]) <= {"reply_lost"}
    answered = table[table["status"] == "succeeded"]
    assert answered["answer"].to_list() == [f"echo: {text}" for text in answered["text"]]
    assert len(answered) + len(doubted) == 5
