"""Figures for people: reports that reconcile, and prices that say where they are from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overnight.job.job import Job, Report
from overnight.job.profiles import Profile, profile_names
from overnight.limits.prices import job_rates
from overnight.reports.agreement import Agreement, Pair
from overnight.reports.look import Failure, Look, Share
from overnight.reports.report import report_text
from overnight.reports.summary import Summary, Tally
from overnight.text import artifact_key, dollars, duration, table


def summary(**fields: Any) -> Summary:
    known: dict[str, Any] = {
        "job": "j", "rows": 10, "requests": 8, "batches": 2, "succeeded": 9, "failed": 1,
        "statuses": {"succeeded": 9, "failed": 1}, "input_tokens": 100, "output_tokens": 20, "cost_usd": 0.5,
        "max_failed_fraction": 0.05, "joined": Path("/x/joined.parquet"), "failed_rows": Path("/x/failed.parquet"),
        "report": Path("/x/report.md"), "seconds": 1.5,
    }  # fmt: skip
    return Summary(**known | fields)


@pytest.mark.parametrize(
    ("amount", "shown"),
    [
        (None, "unknown"),
        (0, "$0"),
        (1234.5, "$1,234.50"),
        (0.0625, "$0.0625"),
        (0.000437, "$0.000437"),
        (1e-12, "$0.00000000"),
    ],
)
def test_amounts_are_shown_with_the_digits_that_matter(amount: float | None, shown: str) -> None:
    assert dollars(amount) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(1.23, "1.2 s"), (42, "42 s"), (720, "12 min"), (11_100, "3 h 5 min")])
def test_durations_are_shown_as_people_say_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def test_a_report_reconciles_and_names_errors_and_savings() -> None:
    tally = Tally(rows=10, requests=8)
    tally.statuses.update({"succeeded": 9, "failed": 1})
    tally.errors["failed", "null_input"] = 1
    failed = [Failure("failed", "null_input", 1, 7, "id=a|b", "column 'x' is null")]
    asked = job("openai", "gpt-4o-mini").model_copy(update={"report": Report(compare="expected")})
    differing = Look(["text", "expected", "answer"], [("x|<b>", "no", "yes")], 3, 9)
    pairs = [Pair("no", "no", 2), Pair("no", "yes", 3), Pair("yes", "yes", 4)]
    shares = [Share("yes", 7), Share("no", 2)]
    text = report_text(summary(), tally, [], asked, shares, Agreement(9, 6, pairs, differing, []), failed)
    for part in (
        "| succeeded | 9 | 90.0% |", "| **all rows** | 10 |", "**above** the bound of 5.0%", '"succeeded" : 9',
        "| failed | null_input | 1 | 8 | id=a\\|b | column 'x' is null |", "**9 of 10 rows answered** (90.0%)", "| yes | 7 | 77.8% | ███████████████████████ |",
        "**6 of 9 answers agree** (66.7%)", "| **no** | 2 | 3 |", "| **yes** | 0 | 4 |", "| x\\|&lt;b> | no | yes |",
        "$0.50 (genai-prices, batch price)", "| in real time | $1.00: $0.50 saved |",
    ):  # fmt: skip
        assert part in text


def test_a_cell_cannot_break_a_table() -> None:
    assert table(["a"], [["x|y\nz"]]) == "| a |\n| --- |\n| x\\|y z |"


def test_artifact_keys_take_any_job_name() -> None:
    assert artifact_key("report", "my-job-1") == "report-my-job-1"
    assert re.fullmatch("report-my-job-1-[0-9a-f]{6}", artifact_key("report", "My_Job-1"))
    assert len({artifact_key("report", name) for name in ("my_job", "my-job", "My-job")}) == 3


def job(profile: str, model: str, **provider: Any) -> Job:
    task = {"kind": "complete", "prompt": "x"}
    return Job.model_validate({"name": "j", "task": task, "model": model, "provider": {"profile": profile, **provider}})


@pytest.mark.parametrize(
    ("made", "million_in_and_out", "source"),
    [
        (job("openai", "gpt-4o-mini"), 0.375, "genai-prices, batch price"),
        (job("openai", "text-embedding-3-small"), 0.01, "standard price less 50%"),
        (job("dashscope", "x", prices={"input": 1, "output": 2}), 3.0, "provider.prices of the job"),
        (job("local", "x"), 0.0, "runs on this machine"),
    ],
)
def test_prices_say_where_they_are_from(made: Job, million_in_and_out: float, source: str) -> None:
    rates = job_rates(made)
    assert rates is not None
    assert rates.cost(1_000_000, 1_000_000) == pytest.approx(million_in_and_out)
    assert source in rates.source


@pytest.mark.parametrize("made", [job("openai", "no-such-model"), job("dashscope", "deepseek-v3"), job("custom", "m")])
def test_a_price_that_nobody_knows_is_none(made: Job) -> None:
    assert job_rates(made) is None


def test_every_profile_reads_and_those_with_an_address_have_a_batch_api_or_say_so() -> None:
    assert {"local", "openai", "deepseek", "dashscope", "siliconflow", "groq", "custom"} <= set(profile_names())
    for name in profile_names():
        profile = Profile.named(name)
        assert profile.endpoints
        assert profile.base_url is None or profile.base_url.startswith("https://")


def test_a_notebook_shows_counts_cost_and_the_first_rows_as_text(tmp_path: Path) -> None:
    reviews, answers = ["<script>alert(1)</script>", "b"], ["x" * 900, None]
    rows = {"review": reviews, "status": ["succeeded"] * 2, "answer": answers, "custom_id": ["1", "2"]}
    pq.write_table(pa.table(rows), tmp_path / "joined.parquet")
    shown = summary(job="<b>", joined=tmp_path / "joined.parquet")._repr_html_()
    assert "9 of 10 rows answered" in shown
    assert "cost $0.5" in shown
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "<script" not in shown
    assert "x" * 201 not in shown
    assert "custom_id" not in shown
    assert "<table" not in summary()._repr_html_()
