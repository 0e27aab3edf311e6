"""The flows under Prefect: as a person calls them from a notebook, and as a deployment does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from pydantic import SecretStr

from overnight.job.job import Job
from tests.conftest import MakeJob, ProviderProcess

pytestmark = pytest.mark.usefixtures("prefect_server")


def read_artifact(key: str) -> str:
    from prefect.client.orchestration import get_client  # noqa: PLC0415 - Prefect's import takes seconds
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return str(found[-1].data)


def test_a_dataframe_from_a_notebook_is_a_dataset(make_job: MakeJob, tmp_path: Path) -> None:
    from flows.run import run_batch  # noqa: PLC0415

    frame = pd.DataFrame({"text": [f"t{n}" for n in range(5)], "n": range(5)})
    job = Job.model_validate({name: value for name, value in make_job([]).items() if name != "dataset"})
    summary = run_batch(job, dataset=frame, home=str(tmp_path / "home"))
    joined = summary.to_pandas()
    assert joined[["text", "n"]].equals(frame)
    assert joined["answer"].to_list() == [f"echo: t{n}" for n in range(5)]
    assert (summary.rows, summary.succeeded, summary.batches, summary.within_bounds) == (5, 5, 1, True)
    again = run_batch(job, dataset=frame, home=str(tmp_path / "home"))
    assert (again.succeeded, again.batches) == (5, 1)


def test_a_job_may_be_a_dict_or_a_file_and_the_report_is_an_artifact(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows.run import run_batch  # noqa: PLC0415

    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path / "home"))
    job = make_job(["a", "[400]"], name="by-dict")
    summary = run_batch(job)
    report = summary.report.read_text()
    assert "| failed | invalid_request | 1 | 2 |" in report
    assert read_artifact("report-by-dict") == report
    path = tmp_path / "job.yaml"
    path.write_text(Job.model_validate(job | {"name": "by-file"}).model_dump_json(by_alias=True))
    assert run_batch(str(path)).succeeded == 1


def test_a_run_that_was_stopped_goes_on_where_it_was(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    from flows.run import run_batch  # noqa: PLC0415

    job = make_job([f"t{n}" for n in range(6)], limits={"max_requests": 2, "poll_seconds": 0.02})
    refusal = {"call": "upload", "status": 401, "body": {"error": {"message": "no"}}}
    provider_server.order(faults=[refusal], default={"polls": 1})
    with pytest.raises(Exception, match="check the key"):
        run_batch(job, home=str(tmp_path / "home"))
    assert run_batch(job, home=str(tmp_path / "home")).succeeded == 6
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_create_that_is_refused_keeps_no_paid_answer_from_being_collected(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    from flows.run import run_batch  # noqa: PLC0415
    from overnight.ledger.run import open_run  # noqa: PLC0415

    limits = {"max_requests": 1, "max_open_batches": 1, "poll_seconds": 0.02}
    job = make_job(["a", "b"], name="refused", limits=limits)
    refusal = {"call": "create", "status": 400, "body": {"error": {"message": "no", "code": "billing_hard_limit"}}}
    provider_server.order(faults=[{"call": "create", "status": 500, "times": 1, "effect": True}, refusal])
    with pytest.raises(Exception, match="the account cannot pay"):
        run_batch(job, home=str(tmp_path / "home"))
    run = open_run(job, home=str(tmp_path / "home"))
    assert [shard.settled for shard in run.ledger.shards("refused")] == [True, False]
    assert run_batch(job, home=str(tmp_path / "home")).succeeded == 2
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_key_comes_from_a_block_and_is_written_nowhere(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    from flows.run import run_batch  # noqa: PLC0415
    from tasks.credentials import BatchProvider  # noqa: PLC0415

    provider_server.order(key="sk-very-secret")
    provider = {"profile": "custom", "base_url": provider_server.base_url, "credentials": "a-key"}
    job = make_job(["a"], name="keyed", provider=provider)
    with pytest.raises(Exception, match="no Batch Provider block named 'a-key'"):
        run_batch(job, home=str(tmp_path / "home"))
    BatchProvider(api_key=SecretStr("sk-very-secret")).save("a-key")
    assert run_batch(job, home=str(tmp_path / "home")).succeeded == 1
    written = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
    assert [path for path in written if b"sk-very-secret" in path.read_bytes()] == []


def test_the_parameters_of_the_flow_make_a_form() -> None:
    from prefect.utilities.callables import parameter_schema  # noqa: PLC0415 - what `prefect deploy` calls

    from flows.run import run_batch  # noqa: PLC0415

    schema: dict[str, Any] = parameter_schema(run_batch).model_dump()
    assert list(schema["properties"]) == ["job", "home", "approve"]  # no `dataset`, which only Python can give
    assert [way["title"] for way in schema["properties"]["job"]["anyOf"] if "title" in way] == ["job file", "whole job"]
    form = schema["definitions"]["JobForm"]
    assert list(form["properties"])[:4] == form["required"] == ["name", "dataset", "prompt", "model"]


def test_a_plan_is_an_artifact(make_job: MakeJob, tmp_path: Path) -> None:
    from flows.plan import plan_batch  # noqa: PLC0415

    made = plan_batch(make_job(["a", "a", None], name="planned"), home=str(tmp_path / "home"))
    assert (made.rows, made.requests, made.unsendable, made.shards) == (3, 1, 1, 1)
    assert read_artifact("plan-planned") == made.text
