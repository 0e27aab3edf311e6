"""The command line: one clear message for bad input, with nothing sent and nothing half-written."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from flows.__main__ import app
from tests.conftest import MakeJob, ProviderProcess


def overnight(*arguments: str | Path) -> int:
    code: int = app([str(argument) for argument in arguments], result_action="return_value")
    return code


@pytest.fixture
def job_file(make_job: MakeJob, tmp_path: Path) -> Any:
    def write(**fields: Any) -> Path:
        path = tmp_path / "job.yaml"
        path.write_text(yaml.safe_dump(make_job(["a", "b"], **fields)))
        return path

    return write


TEMPLATE = {"kind": "generate", "prompt": "{{ text }}"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        pytest.param({"dataset": {"path": "none.csv"}}, "there is no dataset at none.csv", id="missing dataset"),
        pytest.param({"task": TEMPLATE | {"prompt": "{{ txt }}"}}, "has no column 'txt'; did you mean 'text'? (the columns are: id, text)", id="unknown column"),
        pytest.param({"task": TEMPLATE | {"prompt": "{{ text"}}, "task.prompt, line 1: syntax error", id="template syntax"),
        pytest.param({"task": TEMPLATE | {"schema": {"type": "strin"}}}, "task.schema is not a valid JSON Schema", id="bad schema"),
        pytest.param({"tusk": 1}, "`tusk` is not a known field; did you mean 'task'?", id="unknown field"),
        pytest.param({"dataset": {"path": "x", "key": ["id"]}, "report": {"compare": "no"}}, "there is no dataset", id="two things"),
        pytest.param({"report": {"compare": "nope"}}, "report.compare names 'nope'; the columns are: id, text", id="compare"),
        pytest.param({"provider": {"profile": "openai"}}, "set the environment variable OPENAI_API_KEY", id="no key"),
        pytest.param({"provider": {"profile": "deepseek"}}, "overnight endpoint --upstream https://api.deepseek.com", id="deepseek"),
        pytest.param({"provider": {"profile": "siliconflow"}, "task": {"kind": "embed", "input": "{{ text }}"}}, "siliconflow has no batches for /v1/embeddings", id="endpoint of the task"),
        pytest.param({"provider": {"profile": "custom", "base_url": "http://127.0.0.1:9/v1"}}, "cannot reach http://127.0.0.1:9/v1", id="unreachable"),
        pytest.param({"provider": {"profile": "local"}, "model": "gpt-4o-mini"}, "local has no model 'gpt-4o-mini'; there are: smollm2-135m-instruct", id="model of the embedded endpoint"),
        pytest.param({"provider": {"profile": "custom"}}, "has no address: set provider.base_url", id="no address"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_leaves_nothing(
    job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    provider_server: ProviderProcess, fields: dict[str, Any], message: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    assert overnight("run", job_file(**fields), "--home", tmp_path / "home") == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.startswith("error: ")
    assert "Traceback" not in shown
    assert not (tmp_path / "home/texts").exists()
    assert provider_server.books()["calls"] == {}


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "check the key"), (403, "check the key"), (404, "has no Batch API"), (422, "HTTP 422")],
)
def test_a_provider_that_says_no_is_one_message(
    job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], provider_server: ProviderProcess, status: int,
    message: str,
) -> None:  # fmt: skip
    provider_server.order(faults=[{"call": "list", "status": status, "body": {"error": {"message": "no"}}}])
    assert overnight("run", job_file(), "--home", tmp_path / "home") == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "home/texts").exists()


def test_a_home_that_cannot_be_written_is_named(
    job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    assert overnight("run", job_file(), "--home", tmp_path / "file/home") == 1
    assert "choose another with --home" in capsys.readouterr().err


def test_a_bad_line_of_a_raw_file_is_named(
    job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], prefect_server: None
) -> None:
    path = tmp_path / "requests.jsonl"
    good = '{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "m"}}\n'
    path.write_text(good + '{"custom_id": "b"}\n' + good + "{\n")
    job = job_file(task={"kind": "raw"}, model=None, dataset={"path": str(path)})
    assert overnight("run", job, "--home", tmp_path / "home") == 1
    shown = capsys.readouterr().err
    for problem in ("requests.jsonl:2: `method` has to be POST", "requests.jsonl:4: is not valid JSON"):
        assert problem in shown
    assert not (tmp_path / "home/texts").exists()


def test_a_key_that_stands_twice_is_named(
    job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], prefect_server: None
) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("id,text\n-1,a\n-2,b\n-1,c\n,d\n")
    job = job_file(dataset={"path": str(path), "key": ["id"]})
    assert overnight("run", job, "--home", tmp_path / "home") == 1
    shown = capsys.readouterr().err
    assert "row 3: id=-1 stands in an earlier row too" in shown
    assert "row 4: id=None is null" in shown
    assert not (tmp_path / "home/texts").exists()


def test_run_prints_the_outcome_and_json_last(
    job_file: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], prefect_server: None
) -> None:
    home = tmp_path / "home"
    assert overnight("run", job_file(), "--home", home, "--json", "--set", "limits.max_requests=1") == 0
    printed = capsys.readouterr()
    outcome = json.loads(printed.out.splitlines()[-1])
    assert {key: outcome[key] for key in ("job", "rows", "requests", "batches", "succeeded", "failed")} == {
        "job": "texts", "rows": 2, "requests": 2, "batches": 2, "succeeded": 2, "failed": 0}  # fmt: skip
    assert outcome["cost_usd"] is None
    assert pd.read_parquet(outcome["joined"])["answer"].to_list() == ["echo: a", "echo: b"]
    assert "2 of 2 rows answered" in printed.err


def test_too_many_failed_rows_are_exit_code_2_with_all_files_written(
    make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], prefect_server: None
) -> None:
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump(make_job(["a", "[400]"])))
    assert overnight("run", path, "--home", tmp_path / "home") == 2
    assert "more than max_failed_fraction" in " ".join(capsys.readouterr().out.split())
    assert len(pd.read_parquet(tmp_path / "home/texts/failed.parquet")) == 1
    assert overnight("run", path, "--home", tmp_path / "home", "--set", "max_failed_fraction=0.5") == 0


def test_plan_spends_nothing_and_shows_what_would_be_sent(
    job_file: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    prefect_server: None,
    provider_server: ProviderProcess,
) -> None:
    home = tmp_path / "home"
    openai = {"profile": "openai"}
    job = job_file(provider=openai, model="gpt-4o-mini", parameters={"max_tokens": 10})
    assert overnight("plan", job, "--home", home, "--json", "--set", "limits.max_requests=1") == 0
    printed = capsys.readouterr()
    planned = json.loads(printed.out.splitlines()[-1])
    assert (planned["rows"], planned["requests"], planned["shards"], planned["output_tokens"]) == (2, 2, 2, 20)
    expected = (planned["input_tokens"] * 0.075 + 20 * 0.3) / 1e6
    assert planned["cost_usd"] == pytest.approx(expected)
    assert "genai-prices, batch price" in printed.err
    assert '"content": "a"' in printed.err
    assert provider_server.books()["calls"] == {}
    assert not (home / "texts").exists()


def test_the_schema_of_job_files_is_printed_and_current(capsys: pytest.CaptureFixture[str]) -> None:
    assert overnight("schema") == 0
    committed = Path(__file__).parent.parent / "docs/job.schema.json"
    assert capsys.readouterr().out == committed.read_text(), "run `make schema`"
