"""What several processes, a stop, or trouble in the middle may do to a job's pipeline: no row paid twice, none lost."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from overnight.builds.staging import stage
from overnight.errors import JobError, LedgerError, ProviderError, Unauthorized
from overnight.job.job import Job
from overnight.job.profiles import Profile
from overnight.ledger.database import Ledger
from overnight.ledger.run import open_run
from overnight.ledger.states import State
from overnight.limits.canary import last_canary
from overnight.providers.provider import Provider
from overnight.reports.plan import Plan
from overnight.reports.report import report_text
from overnight.reports.status import batch_rows
from overnight.text import table
from tasks.report import summarize
from tasks.validate import plan_staged
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import advance, build, finish, run_job
from tests.test_money import PRICES, job, shard

LIMITS = {"max_requests": 1, "poll_seconds": 0.02}


def test_what_a_stopped_jobs_provider_turns_away_is_not_sent_again(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    full = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached"}
    provider_server.order(batches=[{"polls": 1, "errors": [full]}])
    run = build(make_job(["a", "b"]), tmp_path / "home")
    advance(run, patience=0)
    run.ledger.stop("texts", "the job was cancelled")
    for _ in range(5):
        advance(run, patience=0)
    assert all(one.settled for one in run.ledger.shards("texts"))
    assert provider_server.books()["calls"]["create"] == 1
    assert provider_server.books()["billed"] == {}


@pytest.mark.usefixtures("prefect_server")
class TestFlows:
    """Under Prefect."""

    def test_another_process_with_other_settings_takes_the_job_over(self, make_job: MakeJob, tmp_path: Path) -> None:
        from flows.pipeline import Pipeline  # noqa: PLC0415 - Prefect's import takes seconds

        run = build(make_job(["a"]), tmp_path / "home")
        pipeline = Pipeline(run, run.ledger.job("texts"))
        with pipeline.lease():
            pass
        build(make_job(["a"], parameters={"max_tokens": 5}), tmp_path / "home")
        with pytest.raises(JobError, match="built anew with other settings"), pipeline.lease():
            pass

    def test_a_refused_create_among_many_is_what_the_run_says(
        self, make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
    ) -> None:
        from flows.run import run_batch  # noqa: PLC0415

        refusal = {"call": "create", "status": 402, "body": {"error": {"message": "no money"}}, "delay": 0.3}
        provider_server.order(faults=[refusal], default={"polls": 20})
        wanted = make_job([f"t{n}" for n in range(4)], name="refused-one", limits=LIMITS)
        with pytest.raises(ProviderError, match="the account cannot pay"):
            run_batch(wanted, home=str(tmp_path / "home"))
        assert sum(provider_server.books()["billed"].values()) == 3
        assert provider_server.books()["calls"]["retrieve"] < 200
        assert run_batch(wanted, home=str(tmp_path / "home")).succeeded == 4
        assert set(provider_server.books()["billed"].values()) == {1}

    def test_a_lost_reply_that_cannot_be_looked_for_ends_the_run_with_its_reason(
        self, make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
    ) -> None:
        from flows.run import run_batch  # noqa: PLC0415

        check = {"call": "list", "body": {"data": []}}
        forbidden = {"call": "list", "status": 403, "body": {"error": {"message": "not allowed to list"}}, "times": 50}
        lost = {"call": "create", "status": 500, "effect": True}
        provider_server.order(faults=[check, lost, forbidden])
        with pytest.raises(Unauthorized, match="not allowed to list"):
            run_batch(make_job(["a"], name="unlisted", limits=LIMITS), home=str(tmp_path / "home"))
        assert provider_server.books()["calls"]["list"] < 10

    def test_a_job_that_cannot_be_read_keeps_no_other_from_its_sweep(self, make_job: MakeJob, tmp_path: Path) -> None:
        from flows.collect import collect_batches  # noqa: PLC0415

        home = str(tmp_path / "home")
        broken = build(make_job(["a"], name="a-broken"), tmp_path / "home")
        fine = build(make_job(["b"], name="fine"), tmp_path / "home")
        record = broken.ledger.job("a-broken")
        assert record is not None
        with broken.ledger._engine.begin() as connection:
            connection.exec_driver_sql("UPDATE jobs SET job = '{\"name\": 1}' WHERE name = 'a-broken'")
        for _ in range(3):
            with pytest.raises(JobError, match="not a valid job"):
                collect_batches(home=home)
        assert fine.folder.joined.exists()


def test_a_build_that_another_process_overtook_is_refused(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(default={"polls": 10_000})
    build(make_job(["a"]), tmp_path / "home")
    late = open_run(make_job(["a", "new"]), home=str(tmp_path / "home"))
    staged = stage(late)  # asleep here, while another process sends what was planned
    advance(open_run(make_job(["a", "new"]), home=str(tmp_path / "home")), patience=0)
    with pytest.raises(LedgerError, match="another process sent"):
        plan_staged(late, staged)
    assert provider_server.books()["calls"]["create"] == 1


def test_a_yes_is_good_for_what_sends_and_costs_no_more() -> None:
    from flows.approval import covers, needs_approval  # noqa: PLC0415 - Prefect's import takes seconds

    def plan(cost: float | None, size: int, rows: int = 1) -> Plan:
        return Plan("j", rows, 0, 1, 0, 1, 1, size, 1, 1, cost, "", "")

    assert covers(plan(2.0, 10), plan(1.0, 10))
    assert not covers(plan(2.0, 10), plan(3.0, 10))
    assert not covers(plan(None, 10), plan(None, 11))
    assert not covers(plan(2.0, 10, rows=6), plan(2.0, 10, rows=7))
    assert needs_approval(job(approve_above_usd=1), plan(None, 10))
    assert not needs_approval(job(approve_above_usd=5), plan(2.0, 10))


def test_answers_without_usage_count_at_their_most_and_cost_an_unknown_amount(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(default={"shape": "no_usage"})
    provider = {"profile": "custom", "base_url": provider_server.base_url, "prices": PRICES}
    limits = {"max_requests": 2, "poll_seconds": 0.01, "budget_usd": 900}
    wanted = make_job([f"t{n}" for n in range(6)], provider=provider, limits=limits, parameters={"max_tokens": 5})
    run, joined = run_job(wanted, tmp_path / "home")
    assert Counter(joined["status"]) == {"succeeded": 1, "missing": 5}
    assert joined["cost_usd"].isna().all()
    assert finish(run).cost_usd is None


def test_a_canary_that_was_never_sent_or_was_cut_is_still_owed() -> None:
    careful = job(canary_rows=10)
    unsent = shard(1, State.REFUSED, canary=1, settled=True)
    unsent = type(unsent)(**vars(unsent) | {"batches": ()})
    canary = last_canary(careful, [unsent])
    assert canary is not None
    assert (canary.tried, canary.open, canary.fault) == (False, False, None)
    cut = type(unsent)(**vars(unsent))
    bad = shard(2, State.COLLECTED, canary=1, round=2, settled=True)
    (batch,) = bad.batches
    failed = type(batch)(**vars(batch) | {"verdicts": {"failed": 10}})
    found = last_canary(careful, [cut, type(bad)(**vars(bad) | {"batches": (failed,)})])
    assert found is not None
    assert "10 have no answer" in str(found.fault)


@pytest.mark.parametrize("parameters", [{"max_tokens": -1}, {"max_tokens": True}, {"max_tokens": 5, "n": 0}])
def test_a_limit_that_is_none_bounds_nothing(parameters: dict[str, Any]) -> None:
    from overnight.limits.budget import check_budget, output_limit  # noqa: PLC0415

    made = job(budget_usd=1).model_copy(update={"parameters": parameters})
    assert output_limit(made) is None
    with pytest.raises(JobError, match="set parameters"):
        check_budget(made)


def test_progress_keeps_open_batches_in_view_and_says_why_others_wait() -> None:
    waiting = [shard(n, hold_reason="the queue is full" if n % 2 else None) for n in range(400)]
    rows = batch_rows([*waiting, shard(1000, State.SUBMITTED)], time.time())
    assert [row["status"] for row in rows] == ["to be sent", "held back: the queue is full", "submitted"]
    assert rows[1]["file"] == "200 batches"


def test_a_key_that_a_server_echoes_is_not_repeated(provider_server: ProviderProcess) -> None:
    echo = {"error": {"message": "Incorrect API key provided: sk-very-secret"}}
    provider_server.order(faults=[{"call": "list", "status": 401, "body": echo}])
    profile = Profile.named("custom").overridden(base_url=provider_server.base_url)
    with Provider(profile, "sk-very-secret") as provider, pytest.raises(Unauthorized) as caught:
        provider.check()
    assert "sk-very-secret" not in str(caught.value)
    assert "***" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["postgres://user:secret@host/db", "postgresql+psycopg2://user:secret@host/db", "nonsense"]
)
def test_a_ledger_url_of_another_kind_is_named_without_its_password(url: str) -> None:
    with pytest.raises(LedgerError, match=r"postgresql\+psycopg://") as caught:
        Ledger(url)
    assert "secret" not in str(caught.value)


def test_a_column_name_cannot_break_a_table() -> None:
    assert table(["a|b"], [["c"]]).splitlines()[0] == "| a\\|b |"


@pytest.mark.usefixtures("prefect_server")
def test_an_answer_on_the_terminal_is_good_for_what_was_asked_about_and_not_for_what_the_dataset_became(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    from flows.approval import Approval, asked_by  # noqa: PLC0415 - Prefect's import takes seconds
    from flows.run import run_batch  # noqa: PLC0415

    provider = {"profile": "custom", "base_url": provider_server.base_url, "prices": {"input": 1, "output": 2}}
    fields: dict[str, Any] = {"provider": provider, "parameters": {"max_tokens": 5}, "name": "asked",
                              "limits": {"approve_above_usd": 0, "poll_seconds": 0.02}}  # fmt: skip
    wanted = make_job(["a", "b"], **fields)
    asked: list[int] = []

    def answer(plan: Plan) -> Approval:
        asked.append(plan.sending)
        if len(asked) == 1:
            make_job([f"t{n}" for n in range(50)], **fields)  # while the person thinks
        return Approval(decision="approve" if len(asked) == 1 else "reject")

    with asked_by(answer), pytest.raises(JobError, match="was rejected"):
        run_batch(wanted, home=str(tmp_path / "home"))
    assert (asked, provider_server.books()["billed"]) == ([2, 50], {})


def test_an_approval_has_no_default() -> None:
    from pydantic import ValidationError  # noqa: PLC0415

    from flows.approval import Approval  # noqa: PLC0415 - Prefect's import takes seconds

    with pytest.raises(ValidationError, match="decision"):
        Approval.model_validate({})


def test_what_lost_and_unreadable_answers_may_have_cost_is_in_the_report(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider = {"profile": "custom", "base_url": provider_server.base_url, "prices": {"input": 1, "output": 2}}
    provider_server.order(batches=[{"drop": [0]}])
    run, _ = run_job(make_job(["a", "b"], provider=provider, parameters={"max_tokens": 5}), tmp_path / "home")
    tally = finish(run)
    shards = run.ledger.shards("texts")
    text = report_text(summarize(run, tally, shards, 1.0), tally, shards, run.job)
    assert "may have cost besides, at the most | $0.00" in text


def test_the_provider_of_a_block_is_what_the_command_line_plans_for() -> None:
    from tasks.credentials import BatchProvider, with_account  # noqa: PLC0415 - Prefect's import takes seconds

    block = BatchProvider.model_validate({"api_key": "x", "profile": "openai"})
    named = Job.model_validate({"name": "j", "task": {"kind": "complete", "prompt": "x"}, "model": "m",
                                "provider": {"credentials": "a-block"}}).provider  # fmt: skip
    assert with_account(named, block).profile == "openai"
    assert with_account(named.model_copy(update={"profile": "groq"}), block).profile == "groq"
