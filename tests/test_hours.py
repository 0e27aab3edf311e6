"""Cheap hours: told by the endpoint, shown in the plan and in the report."""

from __future__ import annotations

from pathlib import Path

import pytest

from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.limits.hours import given_text, hours_of, hours_text
from overnight.reports.dry_run import plan_job as plan
from overnight.reports.report import report_text
from overnight.reports.summary import Tally
from tests.conftest import MakeJob
from tests.steps import run_job
from tests.test_endpoint_behaviour import peak_hours
from tests.test_endpoint_support import endpoint
from tests.test_money import job, shard
from tests.test_summary import summary


def test_the_hours_of_a_batch_are_read_from_its_metadata() -> None:
    told = '{"name": "deepseek", "off_peak_lines": 3, "peak_lines": 1, "off_peak_tokens": 30, "peak_tokens": 10}'
    hours = hours_of({"overnight_off_peak": told, "mine": "x"})
    assert hours == {"off_peak_lines": 3, "peak_lines": 1, "off_peak_tokens": 30, "peak_tokens": 10}
    assert given_text([hours, hours]) == "6 of 8 requests ran in the cheap hours, with 75% of the tokens"
    assert given_text([]) is None


@pytest.mark.parametrize("metadata", [None, {}, {"overnight_off_peak": "no json"}, {"overnight_off_peak": "[1]"}])
def test_metadata_that_tells_nothing_is_none(metadata: dict[str, str] | None) -> None:
    assert hours_of(metadata) is None


def test_a_plan_says_when_the_cheap_hours_begin_and_what_they_save() -> None:
    hours = {"name": "deepseek", "discount": 0.5, "peak": "Mon-Fri 01:00-04:00 UTC", "opens_at": 0, "source": "a page"}
    assert "50% less outside its peak (Mon-Fri 01:00-04:00 UTC)" in hours_text(hours)
    assert "begin 1970-01-01 00:00 UTC; source: a page" in hours_text(hours)
    assert "they are on" in hours_text(hours | {"opens_at": None})


def test_a_report_says_what_the_clock_gave() -> None:
    ended = shard(1, State.COLLECTED, settled=True)
    batch = Batch(**vars(ended.batches[0]) | {"hours": {"off_peak_lines": 2, "peak_lines": 0}})
    text = report_text(summary(), Tally(rows=10), [Shard(**vars(ended) | {"batches": (batch,)})], job())
    assert "| cheap hours | 2 of 2 requests ran in the cheap hours |" in text


def test_an_endpoint_with_cheap_hours_is_told_in_the_plan_and_in_the_report(make_job: MakeJob, tmp_path: Path) -> None:
    model, behind = tmp_path / "model", tmp_path / "behind"
    model.mkdir()
    behind.mkdir()
    with (
        endpoint(model) as upstream,
        endpoint(behind, "--upstream", upstream.url, "--off-peak", peak_hours(3, 5)) as running,
    ):
        provider = {"profile": "custom", "base_url": running.url}
        parameters = {"max_tokens": 48, "temperature": 0}
        wanted = make_job(["Say hello."], model="smollm2-135m-instruct", parameters=parameters, provider=provider)
        run, _ = run_job(wanted, tmp_path / "home")
        assert "cheaper outside its peak" in plan(run).text
    hours = [batch.hours for one in run.ledger.shards("texts") for batch in one.batches if batch.hours]
    assert hours[0]["off_peak_lines"] == 1
