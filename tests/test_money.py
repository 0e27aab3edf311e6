"""Budgets, canaries, and what a job costs: decided from the ledger, then kept against a real provider."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from overnight.errors import JobError
from overnight.job.job import Job
from overnight.job.jobfile import load_job
from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.limits.admission import admissible
from overnight.limits.budget import affordable, most_cost, output_limit, spending
from overnight.limits.canary import last_canary
from overnight.limits.prices import Rates, Tier, Written, job_rates, listed_rates
from overnight.reports.dry_run import plan_job as plan
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import build, run_job

PRICES = {"input": 1_000_000, "output": 2_000_000}
"""A dollar per input token, two per output token."""


def job(**limits: Any) -> Job:
    task = {"kind": "generate", "prompt": "x"}
    return Job.model_validate({"name": "j", "task": task, "model": "m", "parameters": {"max_tokens": 5}, "limits": limits,
                               "provider": {"profile": "custom", "prices": PRICES}})  # fmt: skip


def shard(number: int, *states: State, **fields: Any) -> Shard:
    used = {"input_tokens": 30, "output_tokens": 10, "cached_tokens": 0}
    verdicts = {"succeeded": 10}
    batches = tuple(
        Batch(at, number, f"t{number}{at}", state, 0.0, batch_id=f"b{number}{at}",
              usage=used if state is State.COLLECTED else None, verdicts=verdicts if state is State.COLLECTED else None)
        for at, state in enumerate(states)
    )  # fmt: skip
    known: dict[str, Any] = {
        "id": number, "job": "j", "round": 1, "number": number, "key": str(number), "requests": 10, "bytes": 100, "tokens": 30,
        "model": "m", "url": "/v1/chat/completions", "settled": False, "hold_until": None, "hold_reason": None,
    }  # fmt: skip
    return Shard(**known | fields, batches=batches)


MOST = 100 + 10 * 512 + 2 * 10 * 5
"""What a shard above costs at the most before any token was counted: a token for each byte, a chat template for each of
its 10 requests, and 10 whole answers."""
COUNTED = 34 + 10 * 8 + 2 * 10 * 5
"""The same once the provider counted: less than dense text of 100 bytes has."""


def test_what_is_open_is_reserved_and_what_is_collected_costs_what_was_used() -> None:
    shards = [shard(1, State.COLLECTED, settled=True), shard(2, State.REFUSED, State.SUBMITTED), shard(3)]
    assert spending(job(), shards) == pytest.approx((50.0, COUNTED, 0.0))
    assert spending(job(), shards[1:]) == pytest.approx((0.0, MOST, 0.0))


def test_answers_that_were_lost_count_as_if_they_were_paid() -> None:
    lost = shard(1, State.COLLECTED, settled=True)
    lost = Shard(
        **{**vars(lost), "batches": (Batch(**{**vars(lost.batches[0]), "verdicts": {"missing": 5, "succeeded": 5}}),)}
    )
    assert spending(job(), [lost]) == pytest.approx((50 + COUNTED / 2, 0.0, COUNTED / 2))


@pytest.mark.parametrize(("budget", "going"), [(20_000, [1]), (MOST, [1]), (MOST - 1, [])])
def test_one_batch_goes_first_and_only_where_it_cannot_go_above_the_budget(budget: float, going: list[int]) -> None:
    shards = [shard(1), shard(2)]
    chosen = affordable(job(budget_usd=budget), shards, shards)
    assert [one.id for one in chosen.shards] == going
    assert chosen.refusal is not None


@pytest.mark.parametrize(("left", "going"), [(COUNTED * 2, [2, 3]), (COUNTED * 2 - 1, [2]), (COUNTED - 1, [])])
def test_a_batch_that_could_go_above_the_budget_does_not_go(left: float, going: list[int]) -> None:
    shards = [shard(1, State.COLLECTED, settled=True), shard(2), shard(3)]
    chosen = affordable(job(budget_usd=50 + left), shards, shards[1:])
    assert [one.id for one in chosen.shards] == going
    assert (chosen.refusal is None) == (len(going) == 2)


def test_a_budget_waits_for_open_batches_and_stops_the_job_when_nothing_could_change_it() -> None:
    limited = job(budget_usd=MOST * 1.2)
    waiting = admissible([shard(1, State.SUBMITTED), shard(2)], limited, 0.0, run_budgets())
    assert (waiting.shards, waiting.stop) == ([], None)
    assert "the first batch tells what the others cost" in waiting.held[2]
    settled = [shard(1, State.COLLECTED, settled=True), shard(2)]
    assert admissible(settled, limited, 0.0, run_budgets()).shards == settled[1:]
    ended = admissible(settled, job(budget_usd=50 + COUNTED - 1), 0.0, run_budgets())
    assert ended.stop is not None
    assert "$50.00 are spent" in ended.stop


def run_budgets() -> dict[str, Any]:
    from overnight.limits.queue import TokenQueue  # noqa: PLC0415 - only here

    return {"m": TokenQueue(None, 0)}


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({"max_tokens": 7}, 7),
        ({"max_completion_tokens": 3, "n": 4}, 12),
        ({}, None),
        ({"max_tokens": "many"}, None),
        ({"max_tokens": True}, None),
        ({"max_tokens": 7, "n": 0}, None),
        ({"max_output_tokens": 7}, None),
    ],
)
def test_how_long_an_answer_can_be_is_read_from_the_parameters(fields: dict[str, Any], limit: int | None) -> None:
    assert output_limit(job().model_copy(update={"parameters": fields})) == limit


def counts(table: pd.DataFrame) -> dict[str, int]:
    return {str(status): int(rows) for status, rows in table["status"].value_counts().items()}


def priced(provider_server: ProviderProcess) -> dict[str, Any]:
    return {"profile": "custom", "base_url": provider_server.base_url, "prices": PRICES}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"parameters": {}}, "set parameters.max_tokens"),
        ({"provider": {"profile": "custom", "base_url": "http://127.0.0.1:9/v1"}}, "set provider.prices"),
    ],
    ids=["no bound", "no price"],
)
def test_a_budget_that_cannot_be_kept_is_refused(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    common = {"provider": priced(provider_server), "parameters": {"max_tokens": 5}, "limits": {"budget_usd": 1}}
    with pytest.raises(JobError, match=message):
        build(make_job(["a"], **common | fields), tmp_path / "home")


@pytest.mark.parametrize(
    ("task", "parameters", "limit"),
    [
        ({"kind": "respond", "input": "x"}, {"max_output_tokens": 7}, 7),
        ({"kind": "respond", "input": "x"}, {"max_tokens": 7}, None),
        ({"kind": "complete", "prompt": "x"}, {"max_tokens": 7, "best_of": 3}, 21),
        ({"kind": "complete", "prompt": "x"}, {"max_tokens": 7, "best_of": 3, "n": 5}, 35),
        ({"kind": "complete", "prompt": "x"}, {"max_completion_tokens": 7}, None),
        ({"kind": "embed", "input": "x"}, {}, 0),
    ],
)
def test_only_the_limit_that_the_endpoint_knows_bounds_an_answer(
    task: dict[str, Any], parameters: dict[str, Any], limit: int | None
) -> None:
    made = Job.model_validate({"name": "j", "task": task, "model": "m", "parameters": parameters})
    assert output_limit(made) == limit


def test_a_shard_whose_answers_were_cut_is_reserved_with_twice_the_tokens_each_time() -> None:
    once, twice = (most_cost(job(), shard(1, reask=reask), None) for reask in (1, 2))
    assert (once - MOST, twice - MOST) == (2 * 10 * 5, 3 * 2 * 10 * 5)


def test_what_was_sent_keeps_the_price_that_stood_then() -> None:
    then = Rates.flat(Tier(0, 3.0, 4.0, 3.0), "then").as_record()
    sent = shard(1, State.COLLECTED, State.SUBMITTED, settled=False)
    priced_then = Shard(**{**vars(sent), "batches": tuple(replace(one, rates=then) for one in sent.batches)})
    assert spending(job(), [priced_then]) == pytest.approx((30 * 3 + 10 * 4, (34 + 80) * 3 + 50 * 4, 0.0))


@pytest.mark.parametrize(
    ("model", "tokens", "dollars"),
    [
        ("gpt-5.4", 1_000, 1_000 * 1.25e-6),
        ("gpt-5.4", 272_000, 272_000 * 1.25e-6),
        ("gpt-5.4", 272_001, 272_001 * 2.5e-6),
        ("gpt-6-luna", 1_000, 1_000 * 0.05e-6),
    ],
)
def test_a_request_is_priced_by_its_own_tokens(model: str, tokens: int, dollars: float) -> None:
    rates = listed_rates(model, "openai", 0.5)
    assert rates is not None
    assert rates.cost(tokens, 0) == pytest.approx(dollars)
    given, nothing = np.array([float(tokens)]), np.zeros(1)
    assert rates.costs(given, nothing, nothing)[0] == pytest.approx(dollars)
    assert rates.cost(1_000_000, 0, largest=tokens) == pytest.approx(1_000_000 * dollars / tokens)


def test_what_is_written_to_a_cache_and_read_from_it_has_prices_of_its_own() -> None:
    """Sonnet's batch prices per million: 1.5 fresh, 1.875 and 3 to write for minutes and for an hour, 0.15 to read."""
    rates = listed_rates("claude-sonnet-4-5", "anthropic", 0.5)
    assert rates is not None
    cost = rates.cost(100_000, 0, 10_000, Written(20_000, 30_000))
    assert cost == pytest.approx((40_000 * 1.5 + 10_000 * 0.15 + 20_000 * 1.875 + 30_000 * 3) / 1e6)
    real = rates.in_real_time
    assert real is not None
    assert real.cost(100_000, 0, 10_000, Written(20_000, 30_000)) == pytest.approx(2 * cost)
    assert Rates.recorded(rates.as_record()) == rates
    older = rates.as_record() | {"tiers": [tier[:4] for tier in rates.as_record()["tiers"]]}
    assert Rates.recorded(older).cost(100, 0, 0, Written(50, 50)) == Rates.recorded(older).cost(100, 0)


def test_real_time_costs_what_the_list_says_and_not_all_of_a_batch_times_two() -> None:
    rates = listed_rates("gpt-4.1", "openai", 0.5)
    assert rates is not None
    real = rates.in_real_time
    assert real is not None
    assert real.cost(1_000_000, 0, 1_000_000, largest=1) == pytest.approx(
        0.5
    )  # as in a batch: cached tokens cost the same
    assert real.cost(1_000_000, 0, largest=1) == pytest.approx(2.0)
    assert Rates.recorded(rates.as_record()).in_real_time == real


def test_prices_by_hand_know_what_a_cache_costs_where_texts_are_cached() -> None:
    task = {"kind": "generate", "prompt": "x"}
    for profile, dollars in (("anthropic", 4.0), ("openai", 2.0)):
        provider = {"profile": profile, "prices": {"input": 2, "output": 9}}
        rates = job_rates(load_job({"name": "a", "task": task, "model": "m", "provider": provider}))
        assert rates is not None
        assert rates.cost(1_000_000, 0, 0, Written(0, 1_000_000)) == pytest.approx(dollars)


def test_a_budget_holds_over_all_runs_and_more_money_sends_the_rest(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    texts: list[str | None] = [f"t{n}" for n in range(60)]
    common: dict[str, Any] = {"provider": priced(provider_server), "parameters": {"max_tokens": 5}}
    limits = {"max_requests": 10, "poll_seconds": 0.01, "budget_usd": 900}
    for _ in range(2):  # one request first, then ten that may cost 850 and cost 200; ten more could go above it
        run, table = run_job(make_job(texts, limits=limits, **common), tmp_path / "home")
        assert counts(table) == {"succeeded": 11, "missing": 49}
        assert set(table["error_code"].dropna()) == {"not_sent"}
        assert "limits.budget_usd" in table["error_message"][59]
    assert sum(provider_server.books()["billed"].values()) == 11
    assert [batch["lines"] for batch in provider_server.books()["batches"]] == [1, 10]
    assert spending(run.job, run.ledger.shards("texts")).spent == pytest.approx(220)
    _, table = run_job(make_job(texts, limits=limits | {"budget_usd": 20_000}, **common), tmp_path / "home")
    assert counts(table) == {"succeeded": 60}
    assert set(provider_server.books()["billed"].values()) == {1}


@pytest.mark.parametrize("name", ["tools", "response_format"])
def test_everything_that_is_sent_counts_under_a_budget(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, name: str
) -> None:
    bulk = {"tools": [{"type": "function", "function": {"name": "f", "description": "long " * 20_000}}],
            "response_format": {"type": "json_object", "about": "long " * 20_000}}  # fmt: skip
    wanted = make_job(["a", "b"], provider=priced(provider_server), parameters={"max_tokens": 5, name: bulk[name]},
                      limits={"budget_usd": 30_000, "poll_seconds": 0.01})  # fmt: skip
    _, table = run_job(wanted, tmp_path / "home")
    assert counts(table) == {"missing": 2}
    assert provider_server.books()["billed"] == {}


def test_no_second_batch_goes_before_the_tokens_of_the_first_were_counted(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    """Thousands of hidden tokens a request, more than any guess: the first batch is over the budget, and the last."""
    provider_server.order(template_tokens=6000)
    texts: list[str | None] = [f"t{n}" for n in range(300)]
    provider = priced(provider_server) | {"prices": {"input": 1, "output": 1}}
    limits = {"budget_usd": 0.5, "max_requests": 20, "poll_seconds": 0.01}
    run, _ = run_job(
        make_job(texts, provider=provider, parameters={"max_tokens": 10}, limits=limits), tmp_path / "home"
    )
    assert spending(run.job, run.ledger.shards("texts")).spent <= 0.5
    assert sum(provider_server.books()["billed"].values()) > 20


@pytest.mark.parametrize("hidden", [0, 60, 400])
def test_a_budget_holds_where_the_provider_counts_more_tokens_than_anybody_could_guess(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, hidden: int
) -> None:
    provider_server.order(template_tokens=hidden)
    texts: list[str | None] = [f"text number {n}" for n in range(200)]
    prices = {"input": 1, "output": 2}
    limits = {"budget_usd": 0.03, "max_requests": 20, "poll_seconds": 0.01}
    provider = priced(provider_server) | {"prices": prices}
    run, table = run_job(
        make_job(texts, provider=provider, parameters={"max_tokens": 5}, limits=limits), tmp_path / "home"
    )
    spent = spending(run.job, run.ledger.shards("texts"))
    assert table["cost_usd"].sum() == pytest.approx(spent.spent)
    assert 0 < spent.spent <= 0.03
    assert counts(table)["succeeded"] > 10


@pytest.mark.parametrize(("bad", "sent"), [(0, 10), (2, 4)])
def test_a_canary_goes_first_and_the_others_only_when_it_is_well(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, bad: int, sent: int
) -> None:
    texts: list[str | None] = [*(f"[400] {n}" for n in range(bad)), *(f"t{n}" for n in range(10 - bad))]
    limits = {"canary_rows": 4, "max_requests": 3, "poll_seconds": 0.01}
    _, table = run_job(make_job(texts, limits=limits), tmp_path / "home")
    assert sum(provider_server.books()["billed"].values()) == sent
    first = [batch["lines"] for batch in provider_server.books()["batches"]]
    assert first[:2] == [3, 1]
    if bad:
        assert (table["error_code"] == "not_sent").sum() == 6
        assert "canary" in table["error_message"][9]


@pytest.mark.parametrize(("failed", "cost", "well"), [(1, 140.0, True), (2, 140.0, False), (1, 140.1, False)])
def test_a_canary_may_fail_as_much_as_the_job_and_cost_what_was_planned(failed: int, cost: float, well: bool) -> None:
    careful = job(canary_rows=10).model_copy(update={"max_failed_fraction": 0.1})
    tried = shard(1, State.COLLECTED, settled=True, canary=1)
    verdicts = {"succeeded": 10 - failed, "failed": failed}
    (batch,) = tried.batches
    tried = Shard(**{**vars(tried), "batches": (replace(batch, verdicts=verdicts, cost_usd=cost),)})
    canary = last_canary(careful, [tried])
    assert canary is not None
    assert (canary.fault is None) is well


def test_a_canary_that_costs_more_than_planned_stops_the_job(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    limits = {"canary_rows": 1, "poll_seconds": 0.01}
    provider_job = make_job(["a", "b"], limits=limits, provider=priced(provider_server), parameters={"max_tokens": 1})
    run, table = run_job(
        provider_job, tmp_path / "home"
    )  # the provider counts five tokens for each answer all the same
    assert table["status"].to_list() == ["succeeded", "missing"]
    record = run.ledger.job("texts")
    assert record is not None
    assert "cost $20.00, more than" in str(record.stopped)


def test_the_first_rows_are_a_trial_and_the_rest_follows(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    _, first = run_job(make_job(["a", "b", "c"], limits={"max_rows": 2, "poll_seconds": 0.01}), tmp_path / "home")
    assert first["id"].to_list() == [0, 1]
    _, whole = run_job(make_job(["a", "b", "c"]), tmp_path / "home")
    assert (len(whole), set(provider_server.books()["billed"].values())) == (3, {1})


def test_a_plan_tells_what_was_spent_and_what_a_person_will_be_asked(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    limits = {"budget_usd": 2000, "approve_above_usd": 1, "canary_rows": 1, "poll_seconds": 0.01}
    wanted = make_job(["a"], limits=limits, provider=priced(provider_server), parameters={"max_tokens": 5})
    run, table = run_job(wanted, tmp_path / "home")
    assert table["cost_usd"].sum() == pytest.approx(20)
    text = plan(run).text
    for part in (
        "| limits.budget_usd | $2,000.00: $20.00 spent, $0 reserved |",
        "above it a person is asked",
        "1 requests go first",
    ):
        assert part in text
    assert isinstance(pd.read_parquet(run.folder.joined), pd.DataFrame)
