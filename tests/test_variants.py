"""One dataset, several models: a job for each variant, one table of all answers, nothing paid twice."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.errors import JobError
from overnight.job.jobfile import load_job
from overnight.job.variants import variant_jobs, variant_name
from overnight.ledger.run import Run, open_run, recorded_run
from overnight.reports.diagnosis import diagnosis_of
from overnight.reports.dry_run import plan_job
from overnight.reports.look import look, overview, usual_columns
from overnight.reports.side_by_side import write_side_by_side
from overnight.store.files import make_private
from overnight.view.charts import charts
from overnight.view.details import details
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import run_job

JOB: dict[str, Any] = {
    "name": "j",
    "dataset": {"path": "x.csv"},
    "task": {"kind": "generate", "prompt": "{{ text }}", "system": "Be kind."},
    "parameters": {"temperature": 0, "max_tokens": 9},
}


def test_models_stand_for_one_job_each() -> None:
    found = variant_jobs(load_job({**JOB, "models": ["a", "org/b.1"]}))
    assert {label: job.model for label, job in found.items()} == {"a": "a", "org/b.1": "org/b.1"}
    assert len({job.name for job in found.values()}) == 2
    assert all(not job.has_variants and job.parameters == JOB["parameters"] for job in found.values())
    assert variant_jobs(load_job({**JOB, "model": "a"})) == {}


def test_a_variant_has_what_it_names_and_the_jobs_of_all_else() -> None:
    changes = {
        "short": {"parameters": {"max_tokens": 5}},
        "rude": {"task": {"system": "Be rude."}, "model": "other", "provider": {"profile": "groq"}},
    }
    short, rude = variant_jobs(load_job({**JOB, "model": "a", "variants": changes})).values()
    assert (short.model, short.parameters) == ("a", {"temperature": 0, "max_tokens": 5})
    assert (rude.model, rude.provider.profile, rude.task.model_dump()["system"]) == ("other", "groq", "Be rude.")
    assert rude.task.model_dump()["prompt"] == "{{ text }}"


@given(st.text(alphabet="abcXYZ019_-", min_size=1, max_size=31), st.text(min_size=1), st.text(min_size=1))
def test_the_names_of_variants_are_names_of_jobs_and_differ(job: str, label: str, other: str) -> None:
    name = f"a{job}"[:31]
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,30}", variant_name(name, label))
    assert (variant_name(name, label) == variant_name(name, other)) == (label == other)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"models": ["a"], "model": "b"}, "stands in place of model", id="models and model"),
        pytest.param({"models": ["a", "a"]}, "names one of them twice", id="a model twice"),
        pytest.param({"variants": {"x": {}}}, "a model is needed", id="no model anywhere"),
        pytest.param({"models": ["a"], "task": {"kind": "raw"}}, "raw bodies name their own models", id="raw"),
        pytest.param({"variants": {"x": {"modell": "a"}}}, "modell", id="an unknown field"),
    ],
)
def test_what_cannot_be_is_refused_when_the_job_is_read(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        load_job({**JOB, **fields})


def test_a_variant_that_is_no_job_is_named() -> None:
    job = load_job({**JOB, "model": "a", "variants": {"bad": {"task": {"promt": "x"}}}})
    with pytest.raises(JobError, match=r"the variant 'bad' of j.*\n.*promt"):
        variant_jobs(job)


@pytest.mark.usefixtures("prefect_server")
def test_all_variants_answer_and_stand_side_by_side_and_a_rerun_pays_nothing(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    from flows.run import run_batch  # noqa: PLC0415 - Prefect's import takes seconds

    job = make_job(["good", "[400]", None], models=["one", "two"], max_failed_fraction=1, report={"compare": "text"})
    del job["model"]
    home = str(tmp_path / "home")
    summary = run_batch(job, home=home)
    assert (summary.rows, summary.succeeded, summary.requests, summary.batches) == (3, 1, 4, 2)
    assert summary.statuses == {"succeeded": 1, "failed": 2}
    table = pq.read_table(summary.joined).to_pylist()
    assert [(row["answer@one"], row["answer@two"], row["agree"]) for row in table] == [
        ("echo: good", "echo: good", True), (None, None, None), (None, None, None)]  # fmt: skip
    assert [row["error_code"] for row in table] == [None, "invalid_request", "null_input"]
    report = summary.report.read_text()
    assert "| one | two | 1 of 1 (100.0%) |" in report
    billed = provider_server.books()["billed"]
    assert run_batch(job, home=home).succeeded == 1
    assert provider_server.books()["billed"] == billed

    run = recorded_run("texts", home)
    assert diagnosis_of("texts", tmp_path / "home").count("# Rows that were never sent") == 2
    assert look(summary.joined, usual_columns(run)).columns == [
        "text", "status", "answer@one", "answer@two", "error_code"]  # fmt: skip
    assert overview(summary.joined).statuses[0].value == "failed"
    assert details(run, [0])[0]["cells"]["answer@two"] == "echo: good"
    assert charts(run)["fields"]["answer@one"]["values"] == [{"value": "echo: good", "rows": 1}]


def test_a_plan_prices_each_variant_and_all(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(["a", "b"], models=["one", "two"], parameters={"max_tokens": 10})
    job["provider"]["prices"] = {"input": 1.0, "output": 2.0}
    del job["model"]
    made = plan_job(open_run(job, home=str(tmp_path / "home")))
    assert (made.sending, made.output_tokens) == (4, 40)
    assert made.text.count("| 2 |") >= 2
    assert "| **all** |" in made.text


@pytest.mark.usefixtures("prefect_server")
def test_a_name_that_a_plain_job_has_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    from flows.run import run_batch  # noqa: PLC0415 - Prefect's import takes seconds

    home = str(tmp_path / "home")
    run_batch(make_job(["a"]), home=home)
    job = make_job(["a"], models=["one", "two"])
    del job["model"]
    with pytest.raises(JobError, match="was run without variants before"):
        run_batch(job, home=home)


@pytest.mark.usefixtures("prefect_server")
def test_variants_are_submitted_swept_and_cancelled_as_jobs_of_their_own(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    from flows.cancel import cancel_batch  # noqa: PLC0415 - Prefect's import takes seconds
    from flows.recover import recover_job  # noqa: PLC0415
    from flows.run import run_batch  # noqa: PLC0415
    from flows.submit import submit_batch  # noqa: PLC0415

    home = str(tmp_path / "home")
    job = make_job(["a", "b"], models=["one", "two"])
    del job["model"]
    with pytest.raises(JobError, match="no variant of texts was built"):
        cancel_batch(job, home)
    with pytest.raises(JobError, match=r"recover those \(texts-one, texts-two\)"):
        recover_job(job, home)
    provider_server.order(default={"polls": 1000})
    now = submit_batch(job, home=home)
    assert (now.job, now.requests, now.open_batches) == ("texts", 4, 2)
    assert cancel_batch(job, home).done
    provider_server.order(default={"polls": 0})
    assert run_batch(job, home=home).succeeded == 2


def test_ctrl_c_does_not_wait_for_the_provider(make_job: MakeJob, tmp_path: Path) -> None:
    from flows.variants import for_all  # noqa: PLC0415 - Prefect's import takes seconds

    job = make_job(["a"], models=["one", "two"])
    del job["model"]
    run = open_run(job, home=str(tmp_path / "home"))
    never = threading.Event()

    def wait(one: Run) -> None:
        if one.job.model == "two":
            os.kill(os.getpid(), signal.SIGINT)
        never.wait()

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            for_all(run.variants(), run, wait)
    finally:
        signal.signal(signal.SIGINT, before)
        never.set()


@pytest.mark.parametrize("by_query", [False, True])
def test_variants_of_another_order_of_rows_are_not_put_side_by_side(
    make_job: MakeJob, tmp_path: Path, by_query: bool
) -> None:
    job = make_job(["a", "b"], models=["one", "two"])
    del job["model"]
    path = Path(job["dataset"]["path"])
    if by_query:
        job["dataset"] = {"sql": f"select * from '{path}' order by id"}
    run = open_run(job, home=str(tmp_path / "home"))
    runs = run.variants()
    for one, texts in zip(runs.values(), ("ab", "ba"), strict=True):
        path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts)))
        run_job(one.job.model_dump(mode="json", by_alias=True), run.home)
    make_private(run.folder.path)
    with pytest.raises(JobError, match="the dataset changed between the variants"):
        write_side_by_side(run, runs)
    assert not run.folder.joined.exists()
