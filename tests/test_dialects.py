"""Every dialect of the Batch API: the same faults, the same answers; the vendors' own SDKs judge our test server."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from mistralai.client import Mistral

from overnight.answers.lines import read_result
from overnight.answers.readers import answer_reader
from overnight.errors import DownloadCut, Unauthorized
from overnight.job.answer import Answer
from overnight.job.profiles import Profile
from overnight.providers.dialects.mistral import MISTRAL, _hours
from overnight.providers.dialects.xai import XAI
from overnight.providers.provider import Provider
from overnight.providers.replies import RemoteBatch, RemoteError
from tests.cases import Case, check_case
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import build, connected, finish, provider_of, run_job
from tests.test_failure_modes import FAILURES

pytestmark = pytest.mark.usefixtures("dialect_key")

DIALECTS = ("openai", "mistral", "anthropic", "gemini", "xai")


LACKING = {
    "mistral": (
        "failure 15",
        "failure 10: one line fails validation",  # its errors of a batch tell no line
        "failure 10: all lines",
    ),
    "anthropic": (
        "failure 01: a batch without failures",  # its errors have types, no statuses
        "failure 09", "failure 16",  # no file is uploaded
        "failure 07", "failure 10", "failure 15",  # a batch is never failed as a whole
        "failure 05: failed", "failure 05: a full queue", "failure 14: the result file is not there for long",
    ),
    "xai": (
        "failure 01: a batch without failures",
        "failure 15", "failure 10",  # its errors of a batch tell no line
    ),
    "gemini": (
        "failure 02: the answers stand", "failure 10", "failure 15",  # errors stand beside the answers
        "failure 05: expired", "failure 05: an expired", "failure 05: cancelled",  # an end without results, see there
        "failure 11: a download without a length",  # nothing tells how long a result file is, where HTTP does not
    ),
}  # fmt: skip
"""Faults that a dialect cannot have."""


@pytest.mark.parametrize(
    ("profile", "one"),
    [
        pytest.param(profile, *one.values, id=f"{profile}: {one.id}")
        for profile, lacking in LACKING.items()
        for one in FAILURES
        if not str(one.id).startswith(lacking)
    ],
)
def test_no_dialect_loses_a_row_or_pays_for_one_twice(
    profile: str, one: Case, make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    job = one.job | {"provider": provider_of(profile, provider_server)}
    check_case(replace(one, job=job), make_job, tmp_path, provider_server)


def test_the_same_job_comes_to_the_same_answers_in_every_dialect(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    texts: list[str | None] = ["a", "b", "[400]", None, "a"]
    task = {"kind": "classify", "text": "{{ text }}", "labels": ["good", "bad"]}
    tables = {}
    for profile in DIALECTS:
        provider_server.reset()
        job = make_job(texts, task=task, provider=provider_of(profile, provider_server))
        tables[profile] = run_job(job, tmp_path / profile)[1].drop(
            columns=["batch_id", "cost_usd", "error_code", "error_message", "cached_tokens"]
        )
    for table in tables.values():
        pd.testing.assert_frame_equal(table, tables["openai"])


@pytest.mark.parametrize("profile", DIALECTS)
@pytest.mark.parametrize("call", ["list", "content"])
def test_a_key_that_a_server_echoes_is_in_no_error(
    tmp_path: Path, provider_server: ProviderProcess, profile: str, call: str
) -> None:
    echo = {"error": {"message": "the key secret is wrong", "type": "permission_error"}}
    provider_server.order(faults=[{"call": call, "status": 403, "body": echo, "times": 9}])
    with connected(profile, provider_server, tmp_path) as provider:
        file_id = "files/x" if profile == "gemini" else "x"
        calls: dict[str, Callable[[], Any]] = {
            "list": lambda: list(provider.batches()),
            "content": lambda: provider.download(file_id, tmp_path / "x"),
        }
        with pytest.raises(Unauthorized, match=r"the key \*\*\* is wrong"):
            calls[call]()


def test_a_create_call_names_its_model_and_its_window_in_hours(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider = provider_of("mistral", provider_server) | {"completion_window": "2d"}
    run = build(make_job(["a"], provider=provider), tmp_path / "home")
    finish(run)
    (created,) = provider_server.books()["created"]
    assert (created["model"], created["completion_window"]) == ("some-model", "48h")
    assert created["metadata"]["overnight_job"] == "texts"


@pytest.mark.parametrize(("window", "hours"), [("24h", 24), ("7d", 168), ("30d", 168), ("", 24), ("0h", 1)])
def test_a_window_is_as_many_hours_as_mistral_takes(window: str, hours: int) -> None:
    assert _hours(window) == hours


@pytest.mark.parametrize(
    ("reply", "batch"),
    [
        ("<html>", None),
        ({"id": 3}, None),
        ({"id": "j"}, RemoteBatch("j", "unknown")),
        ({"id": "j", "status": "TIMEOUT_EXCEEDED", "input_files": ["f"], "output_file": "o", "error_file": "",
          "succeeded_requests": 2, "failed_requests": 1, "total_requests": 4, "created_at": 7, "metadata": {"a": 1},
          "errors": [{"message": "bad line", "count": 3}, {"message": "odd"}, "?"]},
         RemoteBatch("j", "expired", "f", "o", None, 2, 1, 4, 7.0,
                     (RemoteError("error", "bad line (3 times)", None), RemoteError("error", "odd", None)), {"a": "1"})),
        ({"id": "j", "status": "SUCCESS", "input_files": ["f", "g"], "errors": None}, RemoteBatch("j", "completed")),
    ],
)  # fmt: skip
def test_mistrals_jobs_are_read_with_suspicion(reply: Any, batch: RemoteBatch | None) -> None:
    assert MISTRAL.read(reply) == batch


@pytest.mark.parametrize(
    ("state", "about", "status", "file"),
    [
        ({}, {}, "validating", None),
        ({"num_requests": 3, "num_pending": 2, "num_success": 1}, {}, "in_progress", None),
        ({"num_requests": 3, "num_success": 2, "num_error": 1}, {}, "completed", "b"),
        ({"num_requests": 3, "num_pending": 1}, {"cancel_time": "2026-11-27"}, "cancelling", None),
        ({"num_requests": 3, "num_success": 1, "num_cancelled": 2}, {"cancel_time": "2026-11-27"}, "cancelled", "b"),
        ({"num_requests": 3}, {"cancel_time": "2026-11-28", "expire_time": "2026-11-28"}, "expired", None),
        ({"num_requests": 3}, {"cancel_time": "2026-11-27", "cancel_by_xai_message": "bad file"}, "failed", None),
    ],
)
def test_xais_counters_are_read_as_a_status(
    state: dict[str, int], about: dict[str, str], status: str, file: str | None
) -> None:
    name = {"name": "overnight-ab12-cd34-a-job", "create_time": "2026-11-27"}
    batch = XAI.read({"batch_id": "b", "state": state, **name, **about})
    assert batch is not None
    assert (batch.status, batch.output_file_id, batch.created_at) == (status, file, None)
    assert batch.metadata == {"overnight_attempt": "ab12", "overnight_shard": "cd34", "overnight_job": "a-job"}
    assert [error.message for error in batch.errors] == (["bad file"] if status == "failed" else [])


@pytest.mark.parametrize(
    ("result", "verdict"),
    [
        ({"response": {"chat_get_completion": {"choices": [{"message": {"content": "hi"}}]}}}, "succeeded"),
        ({"error": {"code": 400, "message": "bad"}}, "failed"),
        ({"error": {"code": 500, "message": "busy"}}, "retryable"),
        ({}, "retryable"),
    ],
)
def test_xais_results_are_read_as_they_come(result: dict[str, Any], verdict: str) -> None:
    line = json.dumps({"batch_request_id": "a", "batch_result": result}).encode()
    read = read_result(line)
    assert (read.custom_id, answer_reader(Answer.text())(read).verdict) == ("a", verdict)


def test_xais_results_come_in_pages_and_have_to_be_all(
    provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.providers.xai._PAGE", 2)
    line = '{"custom_id": "a%d", "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}\n'
    (tmp_path / "a.jsonl").write_text("".join(line % number for number in range(5)))
    marks = {"overnight_job": "j", "overnight_attempt": "ab", "overnight_shard": "cd"}
    with connected("xai", provider_server, tmp_path) as provider:
        made = provider.create(provider.upload(tmp_path / "a.jsonl").id, "/v1/chat/completions", marks).id
        assert [batch.metadata for batch in provider.batches()] == [marks]
        provider.retrieve(made)
        provider.download(made, tmp_path / "results")
        assert len((tmp_path / "results").read_bytes().splitlines()) == 5
        few = {"results": [{"batch_request_id": "a0"}]}
        provider_server.order(faults=[{"call": "content", "status": 200, "body": few, "times": 9}])
        with pytest.raises(DownloadCut, match="1 results came of 5"):
            provider.download(made, tmp_path / "few")
    assert not (tmp_path / "few").exists()


def test_all_pages_of_jobs_and_files_are_listed(
    provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("overnight.providers.pages._PAGE", 5)
    profile = Profile.named("mistral").overridden(base_url=provider_server.base_url)
    (tmp_path / "a.jsonl").write_text('{"custom_id": "a", "body": {"messages": []}}\n')
    with Provider(profile, "secret") as provider:
        uploaded = [provider.upload(tmp_path / "a.jsonl", f"{n}.jsonl").id for n in range(6)]
        made = [provider.create(uploaded[0], "/v1/chat/completions", {}, model="m").id for _ in range(11)]
        assert [batch.id for batch in provider.batches()] == made[::-1]
        assert [file.id for file in provider.files()] == uploaded


def test_mistrals_own_client_understands_the_test_server(provider_server: ProviderProcess, tmp_path: Path) -> None:
    """So what overnight says to the server is what Mistral's client says, and what it hears is what that expects."""
    address = provider_server.base_url.removesuffix("/v1")
    line = b'{"custom_id": "a", "body": {"model": "m", "messages": [{"role": "user", "content": "hi"}]}}\n'
    with Mistral(api_key="secret", server_url=address) as client:
        file = client.files.upload(file={"file_name": "a.jsonl", "content": line}, purpose="batch")
        job = client.batch.jobs.create(
            input_files=[file.id], model="m", endpoint="/v1/chat/completions", metadata={"overnight_attempt": "x"}
        )
        assert (job.status, job.input_files, job.metadata) == ("QUEUED", [file.id], {"overnight_attempt": "x"})
        done = client.batch.jobs.get(job_id=job.id)
        assert (done.status, done.succeeded_requests, done.total_requests) == ("SUCCESS", 1, 1)
        listed = client.batch.jobs.list(page=0, page_size=10)
        assert [one.id for one in listed.data or []] == [job.id]
        output = client.files.download(file_id=str(done.output_file)).read()
    (tmp_path / "a.jsonl").write_bytes(line)
    profile = Profile.named("mistral").overridden(base_url=provider_server.base_url)
    with Provider(profile, "secret") as provider:
        seen = provider.retrieve(job.id)
        assert (seen.status, seen.done, seen.metadata) == ("completed", 1, {"overnight_attempt": "x"})
        provider.download(seen.output_file_id or "", tmp_path / "output")
        ours = provider.create(provider.upload(tmp_path / "a.jsonl").id, "/v1/chat/completions", {"a": "b"}, model="m")
    assert (tmp_path / "output").read_bytes() == output
    theirs, mine = provider_server.books()["created"]
    assert mine.keys() == theirs.keys()
    assert ours.status == "validating"
