"""Gemini's batches: uploads in two steps, a display name in place of metadata, an expiry without results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from google import genai
from google.genai import types

from overnight.answers.lines import read_result
from overnight.answers.readers import answer_reader
from overnight.errors import ProviderUnavailable, QueueFull
from overnight.job.answer import Answer
from overnight.providers.connect import connect
from overnight.providers.dialects.gemini import GEMINI, read_file
from overnight.providers.google import GoogleProvider
from overnight.providers.replies import RemoteBatch, RemoteError, RemoteFile
from tasks.doctor import Examination
from tasks.recover import recover
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import advance, build, connected, finish, provider_of, run_job, without_ledger

pytestmark = pytest.mark.usefixtures("dialect_key")

MARKS = {"overnight_job": "j", "overnight_attempt": "ab12", "overnight_shard": "cd34"}
EXHAUSTED = {
    "error": {"code": 429, "status": "RESOURCE_EXHAUSTED",
              "message": "You exceeded your current quota, please check your plan and billing details."}
}  # fmt: skip


@pytest.fixture
def provider(provider_server: ProviderProcess, tmp_path: Path) -> GoogleProvider:
    found = connected("gemini", provider_server, tmp_path)
    assert isinstance(found, GoogleProvider)
    return found


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    path = tmp_path / "requests.jsonl"
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    path.write_text(
        json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": body}) + "\n"
    )
    return path


@pytest.mark.parametrize(
    ("reply", "batch"),
    [
        ("<html>", None),
        ({"done": True}, None),
        ({"name": "batches/b"}, RemoteBatch("batches/b", "unknown")),
        ({"name": "batches/b", "metadata": {"state": "BATCH_STATE_PARTIALLY_SUCCEEDED", "displayName": "overnight-ab12-cd34-a-job",
          "batchStats": {"requestCount": "5", "successfulRequestCount": "3"}, "inputConfig": {"fileName": "files/f"},
          "output": {"responsesFile": "files/o"}, "createTime": "2026-11-27T00:00:00.5Z"}},
         RemoteBatch("batches/b", "completed", "files/f", "files/o", None, 3, 0, 5, 1795737600.5,
                     metadata=MARKS | {"overnight_job": "a-job"})),
        ({"name": "batches/b", "metadata": {"state": "JOB_STATE_SUCCEEDED", "displayName": "somebody's"},
          "response": {"responsesFile": "files/o"}}, RemoteBatch("batches/b", "completed", None, "files/o")),
        ({"name": "batches/b", "metadata": {"state": "BATCH_STATE_FAILED"}, "error": {"code": 3, "message": "bad file"}},
         RemoteBatch("batches/b", "failed", errors=(RemoteError("3", "bad file", None),))),
        ({"name": "batches/b", "metadata": {"state": "BATCH_STATE_EXPIRED"}}, RemoteBatch("batches/b", "expired")),
        ({"name": "batches/b", "metadata": {"state": "BATCH_STATE_PENDING"}}, RemoteBatch("batches/b", "pending")),
    ],
)  # fmt: skip
def test_operations_are_read_in_openais_words(reply: Any, batch: RemoteBatch | None) -> None:
    assert GEMINI.read(reply) == batch


@pytest.mark.parametrize(
    ("reply", "file"),
    [
        ("<html>", None),
        ({"file": {"name": "files/f", "displayName": "a.jsonl", "sizeBytes": "12", "state": "ACTIVE"}},
         RemoteFile("files/f", "a.jsonl", 12, ready=True)),
        ({"name": "files/f", "state": "PROCESSING"}, RemoteFile("files/f", None, None, ready=False)),
    ],
)  # fmt: skip
def test_files_are_read_bare_and_as_an_upload_has_them(reply: Any, file: RemoteFile | None) -> None:
    assert read_file(reply) == file


@pytest.mark.parametrize(
    ("reply", "entries"),
    [({}, []), ({"nextPageToken": "x"}, []), ({"operations": [1]}, [1]), ({"data": []}, None), ({"error": {}}, None)],
)
def test_an_empty_page_is_an_empty_object_and_nothing_else_is(reply: dict[str, Any], entries: list[Any] | None) -> None:
    assert GEMINI.entries(reply) == entries


def test_tokens_come_in_its_own_words_and_thinking_is_output() -> None:
    usage = {"promptTokens": 7, "completionTokens": 2, "totalTokens": 20}
    choice = {"message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    body = {"model": "g", "choices": [choice], "usage": usage}
    line = json.dumps({"custom_id": "a", "response": {"status_code": 200, "body": body}}).encode()
    read = answer_reader(Answer.text())(read_result(line))
    assert (read.verdict, read.input_tokens, read.output_tokens) == ("succeeded", 7, 13)


def test_a_batch_is_known_again_by_its_display_name(provider: GoogleProvider, requests: Path) -> None:
    with provider:
        file = provider.upload(requests, "overnight-ab12.jsonl")
        assert provider.file(file.id) == file
        assert [one.id for one in provider.files()] == [file.id]
        made = provider.create(file.id, "/v1/chat/completions", MARKS, model="models/gemini-x")
        (listed,) = provider.batches()
        assert listed.metadata == MARKS
        assert (listed.id, listed.input_file_id) == (made.id, file.id)
        provider.delete(file.id)
        provider.delete(file.id)
        assert list(provider.files()) == []


def test_all_pages_are_listed(provider: GoogleProvider, requests: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("overnight.providers.pages._PAGE", 2)
    with provider:
        files = [provider.upload(requests, f"{n}.jsonl").id for n in range(5)]
        made = [provider.create(files[0], "/v1/chat/completions", MARKS, model="m").id for _ in range(4)]
        assert [one.id for one in provider.files()] == files
        assert [one.id for one in provider.batches()] == made[::-1]


def test_an_exhausted_quota_at_the_create_call_is_a_full_queue_and_no_lack_of_money(
    provider: GoogleProvider, provider_server: ProviderProcess, requests: Path
) -> None:
    provider_server.order(faults=[{"call": "create", "status": 429, "body": EXHAUSTED}])
    with provider, pytest.raises(QueueFull, match="RESOURCE_EXHAUSTED"):
        provider.create(provider.upload(requests).id, "/v1/chat/completions", MARKS, model="m")


def test_the_bytes_go_to_the_providers_own_address_alone(
    provider: GoogleProvider, provider_server: ProviderProcess, requests: Path
) -> None:
    elsewhere = {"X-Goog-Upload-URL": "http://127.0.0.1:9/upload"}
    provider_server.order(faults=[{"call": "begin upload", "status": 200, "body": {}, "headers": elsewhere}])
    with (
        provider,
        pytest.raises(ProviderUnavailable, match=r"answered with the address 'http://127\.0\.0\.1:9/upload'"),
    ):
        provider.upload(requests)


def test_a_batch_that_expires_without_results_is_sent_again_in_smaller_ones(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(batches=[{"end": "expired", "answer": 0}])
    job = make_job([f"t{n}" for n in range(4)], provider=provider_of("gemini", provider_server))
    _, table = run_job(job, tmp_path / "home")
    assert table["answer"].to_list() == [f"echo: t{n}" for n in range(4)]
    assert len(provider_server.books()["batches"]) > 1
    assert set(provider_server.books()["billed"].values()) == {1}


def test_embeddings_are_asked_in_its_own_form(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "create", "status": 500, "effect": True}])
    task = {"kind": "embed", "input": "{{ text }}"}
    provider = provider_of("gemini", provider_server)
    job = make_job(["a", "bcd", None], task=task, provider=provider, model="gemini-embedding-001")
    run, table = run_job(job, tmp_path / "home")
    assert [None if one is None else list(one) for one in table["embedding"]] == [[1.0, 0.5], [3.0, 0.5], None]
    assert table["input_tokens"].sum() == 6
    assert set(provider_server.books()["billed"].values()) == {1}
    assert provider_server.books()["calls"]["create"] == 1
    (shard,) = run.ledger.shards("texts")
    assert shard.batches[0].verdicts == {"succeeded": 2}


@pytest.mark.parametrize(
    ("parameters", "request_", "refused"),
    [
        ({}, {"content": {"parts": [{"text": "hi"}]}}, None),
        ({"dimensions": 64}, {"content": {"parts": [{"text": "hi"}]}, "output_dimensionality": 64}, None),
        (
            {"encoding_format": "base64"},
            None,
            "gemini's embeddings have no 'encoding_format': leave it out of parameters",
        ),
        ({"input": ["a", "b"]}, None, "gemini embeds one text a request"),
    ],
)
def test_an_embedding_is_said_as_gemini_has_it_or_refused(
    parameters: dict[str, Any], request_: dict[str, Any] | None, refused: str | None
) -> None:
    body = {"model": "m", "input": "hi", **parameters}
    line = json.dumps({"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": body}).encode()
    assert GEMINI.line is not None
    assert GEMINI.refused is not None
    assert GEMINI.refused(line) == refused
    if request_ is not None:
        assert json.loads(GEMINI.line(line)) == {"key": "a", "request": request_}


def test_a_lost_ledger_is_recovered_by_the_display_names(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, requests: Path
) -> None:
    limits = {"max_requests": 2, "poll_seconds": 0.02, "max_enqueued_tokens": 100_000}
    texts: list[str | None] = [f"t{n}" for n in range(5)]
    job = make_job(texts, provider=provider_of("gemini", provider_server), limits=limits)
    provider_server.order(default={"polls": 1})
    advance(build(job, tmp_path / "home"), patience=0)
    run = without_ledger(job, tmp_path / "home")
    with connect(run.job.profile, run.home) as provider:
        provider.create(provider.upload(requests).id, "/v1/chat/completions", MARKS, model="m")
        found = recover(run, provider)
        assert (found.batches, found.without_file) == (3, 0)
    assert finish(build(job, run.home)).statuses == {"succeeded": 5}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_doctor_finds_all_that_a_job_needs(provider: GoogleProvider) -> None:
    with provider:
        examination = Examination(provider)
        examination.run()
    assert [(check.what, check.detail) for check in examination.checks if not check.passed] == []
    told = {check.what: check.detail for check in examination.checks}
    assert told["it is listed, with its metadata"] == "a lost reply is found again by its metadata"


def test_googles_own_client_understands_the_test_server(
    provider: GoogleProvider, provider_server: ProviderProcess, requests: Path, tmp_path: Path
) -> None:
    options = types.HttpOptions(base_url=provider_server.base_url.removesuffix("/v1"), api_version="v1")
    with genai.Client(api_key="secret", http_options=options) as client:
        about = types.UploadFileConfig(display_name="theirs.jsonl", mime_type="application/jsonl")
        file = client.files.upload(file=str(requests), config=about)
        assert (file.display_name, file.size_bytes) == ("theirs.jsonl", requests.stat().st_size)
        name = types.CreateBatchJobConfig(display_name="overnight-ab12-cd34")
        job = client.batches.create(model="gemini-x", src=str(file.name), config=name)
        done = client.batches.get(name=str(job.name))
        assert (done.state, done.display_name) == (types.JobState.JOB_STATE_SUCCEEDED, "overnight-ab12-cd34")
        assert done.dest is not None
        listed = [one.name for one in client.batches.list()]
        theirs = client.files.download(file=str(done.dest.file_name))
    with provider:
        (ours,) = provider.batches()
        assert [ours.id] == listed
        assert (ours.status, ours.output_file_id, ours.done) == ("completed", done.dest.file_name, 1)
        provider.download(ours.output_file_id or "", tmp_path / "results.jsonl")
    assert (tmp_path / "results.jsonl").read_bytes() == theirs
