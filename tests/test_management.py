"""Flows around a run: submitted and swept, cancelled, listed, diagnosed, cleaned up, probed, told by a webhook."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fastapi.testclient import TestClient

from overnight.errors import JobError
from overnight.ledger.run import recorded_run
from overnight.providers.replies import RemoteFile
from overnight.providers.stored_files import deletable, sorted_out
from overnight.providers.webhook import WebhookEvent
from overnight.reports.diagnosis import advice
from tests.conftest import MakeJob, ProviderProcess

LIMITS = {"max_requests": 2, "poll_seconds": 0.02}


@pytest.mark.usefixtures("prefect_server")
class TestFlows:
    """Under Prefect."""

    def test_a_job_is_submitted_and_swept_to_its_end(
        self, make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
    ) -> None:
        from flows.collect import collect_batches  # noqa: PLC0415 - Prefect's import takes seconds
        from flows.submit import submit_batch  # noqa: PLC0415

        home = str(tmp_path / "home")
        provider_server.order(default={"polls": 1})
        now = submit_batch(make_job(["a", "b", "[500 once]"], name="swept", limits=LIMITS), home=home)
        assert (now.requests, now.answered, now.open_batches, now.done) == (3, 0, 2, False)
        sweeps = 0
        while standings := collect_batches(home=home):
            sweeps += 1
            assert sweeps < 10
            assert [standing.job for standing in standings] == ["swept"]
        assert set(pd.read_parquet(tmp_path / "home/swept/joined.parquet")["status"]) == {"succeeded"}
        calls = provider_server.books()["calls"]
        assert collect_batches(home=home) == []
        assert provider_server.books()["calls"] == calls
        assert sorted(provider_server.books()["billed"].values()) == [1, 1, 2]

    def test_a_sweep_needs_neither_the_job_file_nor_its_folder(
        self, make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flows.collect import collect_batches  # noqa: PLC0415
        from flows.submit import submit_batch  # noqa: PLC0415

        monkeypatch.chdir(tmp_path)
        (tmp_path / "schema.json").write_text('{"type": "object", "properties": {"a": {"type": "string"}}}')
        task = {"kind": "generate", "prompt": "{{ text }}", "schema": "schema.json"}
        job = make_job(
            ["a"], name="elsewhere", task=task, limits=LIMITS | {"max_reasks": 0}, dataset={"path": "texts.jsonl"}
        )
        submit_batch(job, home=str(tmp_path / "home"))
        (tmp_path / "schema.json").unlink()
        monkeypatch.chdir("/")
        collect_batches("elsewhere", str(tmp_path / "home"))
        assert len(pd.read_parquet(tmp_path / "home/elsewhere/joined.parquet")) == 1

    def test_trouble_with_one_job_keeps_no_other_from_its_sweep(self, make_job: MakeJob, tmp_path: Path) -> None:
        from flows.collect import collect_batches  # noqa: PLC0415
        from flows.submit import submit_batch  # noqa: PLC0415

        home = str(tmp_path / "home")
        submit_batch(make_job(["a"], name="a-lost-dataset", limits=LIMITS), home=home)
        other = tmp_path / "other.jsonl"
        other.write_text('{"text": "b"}\n')
        submit_batch(make_job(["a"], name="fine", limits=LIMITS, dataset={"path": str(other)}), home=home)
        (tmp_path / "texts.jsonl").unlink()
        with pytest.raises(Exception, match=r"texts\.jsonl"):
            collect_batches(home=home)
        assert (tmp_path / "home/fine/joined.parquet").exists()

    def test_a_cancelled_job_keeps_its_answers_and_sends_nothing_more_until_it_is_run_again(
        self, make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
    ) -> None:
        from flows.cancel import cancel_batch  # noqa: PLC0415
        from flows.collect import collect_batches  # noqa: PLC0415
        from flows.run import run_batch  # noqa: PLC0415
        from flows.submit import submit_batch  # noqa: PLC0415

        home = str(tmp_path / "home")
        provider_server.order(default={"polls": 10_000, "answer": 1})
        job = make_job([f"t{n}" for n in range(6)], name="stopped", limits=LIMITS | {"max_open_batches": 2})
        submit_batch(job, home=home)
        now = cancel_batch("stopped", home)
        assert (now.done, now.stopped) == (True, "the job was cancelled")
        table = pd.read_parquet(tmp_path / "home/stopped/joined.parquet")
        assert table["status"].to_list() == ["succeeded", "expired", "succeeded", "expired", "missing", "missing"]
        assert table["error_code"].to_list()[4:] == ["not_sent", "not_sent"]
        assert collect_batches(home=home) == []
        assert len(provider_server.books()["batches"]) == 2
        provider_server.order(default={})
        assert run_batch(job, home=home).succeeded == 6
        assert set(provider_server.books()["billed"].values()) == {1}

    @pytest.mark.parametrize(("made", "seconds"), [(True, 30), (False, 0.5)])
    def test_cancelling_finds_the_batch_of_a_lost_reply_and_creates_none(
        self, make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, made: bool, seconds: float
    ) -> None:
        from flows.cancel import cancel_batch  # noqa: PLC0415
        from flows.submit import submit_batch  # noqa: PLC0415

        hidden = {"call": "list", "body": {"data": [], "has_more": False}, "times": 2}
        check = {"call": "list", "body": {"data": []}}
        provider_server.order(
            default={"polls": 10_000}, faults=[check, {"call": "create", "status": 500, "effect": made}, hidden]
        )
        job = make_job(["a"], name=f"lost-{made}".lower(), limits=LIMITS | {"lost_reply_seconds": seconds})
        submit_batch(job, home=str(tmp_path / "home"))
        assert cancel_batch(job["name"], str(tmp_path / "home")).done
        books = provider_server.books()
        assert (books["calls"]["create"], len(books["batches"])) == (1, int(made))
        assert [batch["status"] for batch in books["batches"]] == ["cancelled"] * made

    def test_the_graph_of_a_job_with_many_shards_stays_small(self, make_job: MakeJob, tmp_path: Path) -> None:
        from prefect.client.orchestration import get_client  # noqa: PLC0415
        from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterName  # noqa: PLC0415

        from flows.run import run_batch  # noqa: PLC0415

        limits = {"max_requests": 1, "max_open_batches": 120, "poll_seconds": 0.02}
        job = make_job([f"t{n}" for n in range(120)], name="many", limits=limits, cleanup="never")
        summary = run_batch(job, home=str(tmp_path / "home"))
        assert (summary.batches, summary.succeeded) == (120, 120)
        mine = FlowRunFilter(name=FlowRunFilterName(like_="many · 120"))
        with get_client(sync_client=True) as client:
            names = [run.name for run in client.read_task_runs(flow_run_filter=mine)]
        assert len(names) < 80
        assert "submit 0001-0000 to 0001-0005" in names

    def test_batches_are_listed_with_the_jobs_that_sent_them(self, make_job: MakeJob, tmp_path: Path) -> None:
        from flows.list import list_batches  # noqa: PLC0415
        from flows.submit import submit_batch  # noqa: PLC0415

        job = make_job(["a"], name="listed", limits=LIMITS)
        submit_batch(job, home=str(tmp_path / "home"))
        (mine,) = list_batches(job["provider"], home=str(tmp_path / "home"))
        assert (mine.job, mine.file, mine.known) == ("listed", "0001-0000.jsonl", True)
        (others,) = list_batches(job["provider"], home=str(tmp_path / "other"))
        assert (others.job, others.known) == ("listed", False)

    def test_a_diagnosis_groups_errors_with_examples_and_advice(self, make_job: MakeJob, tmp_path: Path) -> None:
        from flows.diagnose import diagnose_batch  # noqa: PLC0415
        from flows.run import run_batch  # noqa: PLC0415

        home = str(tmp_path / "home")
        job = make_job(["fine", "[400] x", "[400] y", "[refuse]"], name="ill", max_failed_fraction=1)
        run_batch(job, home=home)
        text = diagnose_batch("ill", home)
        assert "| failed | invalid_request | 2 |" in text
        assert "ordered 400" in text
        assert "the model declined: reword the prompt" in text
        assert "| failed | invalid_request | 2 |" in diagnose_batch("batch_000001", home)
        with pytest.raises(JobError, match="knows no job and no batch named 'nobody'"):
            diagnose_batch("nobody", home)

    def test_only_our_files_that_nobody_needs_are_deleted(
        self, make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
    ) -> None:
        from flows.clean import clean_files  # noqa: PLC0415
        from flows.run import run_batch  # noqa: PLC0415
        from flows.submit import submit_batch  # noqa: PLC0415

        home = str(tmp_path / "home")
        run_batch(make_job(["a"], name="kept", cleanup="never", limits=LIMITS), home=home)
        provider_server.order(default={"polls": 10_000})
        job = make_job(["b"], name="open", limits=LIMITS)
        submit_batch(job, home=home)
        submit_batch(make_job(["c"], name="theirs", limits=LIMITS), home=str(tmp_path / "other"))
        told = clean_files(job["provider"], older_than_hours=-1, home=home)
        assert (told.files, told.ours, told.deletable, told.deleted) == (4, 4, 2, 0)
        done = clean_files(job["provider"], older_than_hours=-1, dry_run=False, home=home)
        assert done.deleted == 2
        assert len(provider_server.books()["files"]) == 2

    def test_a_doctor_passes_a_good_endpoint_and_names_what_a_bad_one_lacks(
        self, tmp_path: Path, provider_server: ProviderProcess
    ) -> None:
        from flows.doctor import doctor  # noqa: PLC0415

        provider = {"profile": "custom", "base_url": provider_server.base_url}
        good = doctor(provider, str(tmp_path / "home"))
        assert good.passed
        assert {check.passed for check in good.checks} == {True}
        assert provider_server.books()["files"] == []
        provider_server.order(
            faults=[{"call": "create", "status": 400, "body": {"error": {"message": "no batches here"}}}]
        )
        bad = doctor(provider, str(tmp_path / "home"))
        assert not bad.passed
        assert [(check.what, check.passed) for check in bad.checks if not check.passed] == [
            ("create a batch", False), ("look at it", None), ("it is listed, with its metadata", None), ("cancel", None),
        ]  # fmt: skip
        assert "no batches here" in bad.text


def test_files_are_told_apart_and_only_old_ones_of_ours_go() -> None:
    files = [
        RemoteFile("f1", "overnight-x.jsonl", 1, True, 10.0),
        RemoteFile("f2", "overnight-y.jsonl", 1, True, 10.0),
        RemoteFile("f3", "overnight-z.jsonl", 1, True, 90.0),
        RemoteFile("f4", "somebody.jsonl", 1, True, 10.0),
        RemoteFile("f5", "overnight-open.jsonl", 1, True, 10.0),
        RemoteFile("f6", "overnight-timeless.jsonl", 1, True, None),
    ]
    stored = sorted_out(files, {"f1": ("job", "collected")}, {"f5"})
    assert [one.use for one in stored] == ["collected", "orphan", "orphan", "foreign", "open", "orphan"]
    assert [one.file.id for one in deletable(stored, 50.0)] == ["f1", "f2"]


@pytest.mark.parametrize(
    ("code", "part"),
    [("rate_limit_exceeded", "busy"), ("http_503", "provider's fault"), ("context_length_exceeded", "too long"),
     ("invalid_json", "not in the form"), ("invalid_request", "refused for good"), ("insufficient_quota", "cannot pay")],
)  # fmt: skip
def test_every_known_code_has_its_advice(code: str, part: str) -> None:
    assert part in advice(code)
    assert advice("something_new") == ""


SECRET = "whsec_" + base64.b64encode(b"a secret of thirty-two bytes....").decode()


def delivery(event: dict[str, Any], sent_at: float, secret: str = SECRET) -> tuple[bytes, dict[str, str]]:
    body = json.dumps(event).encode()
    key = base64.b64decode(secret.removeprefix("whsec_"))
    signed = f"wh_1.{int(sent_at)}.".encode() + body
    signature = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    headers = {"webhook-id": "wh_1", "webhook-timestamp": str(int(sent_at)), "webhook-signature": f"v1,{signature}"}
    return body, headers


def test_a_signed_webhook_starts_one_sweep_of_its_job(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    from flows.webhook import create_app  # noqa: PLC0415 - Prefect's import takes seconds
    from tests.steps import advance, build  # noqa: PLC0415

    provider_server.order(default={"polls": 10_000})
    run = build(make_job(["a"]), tmp_path / "home")
    advance(run, patience=0)
    (batch,) = run.ledger.shards("texts")[0].batches
    started: list[tuple[str, WebhookEvent]] = []
    home = str(tmp_path / "home")
    client = TestClient(create_app(SECRET, home, lambda job, event: started.append((job, event))))
    event = {
        "id": "evt_1",
        "type": "batch.completed",
        "object": "event",
        "created_at": 1,
        "data": {"id": batch.batch_id},
    }
    body, headers = delivery(event, time.time())
    assert [client.post("/", content=body, headers=headers).status_code for _ in range(2)] == [202, 200]
    assert [(job, told.batch_id) for job, told in started] == [("texts", batch.batch_id)]
    wrong = "whsec_" + base64.b64encode(b"another secret").decode()
    for forged in (delivery(event, time.time(), wrong), delivery(event, time.time() - 900), (body, {})):
        assert client.post("/", content=forged[0], headers=forged[1]).status_code == 401
    for foreign in ({**event, "data": {"id": "batch_of_others"}}, {**event, "type": "response.completed"}):
        content, signed = delivery(foreign, time.time())
        assert client.post("/", content=content, headers=signed | {"webhook-id": "wh_1"}).status_code in (200, 401)
    assert client.post("/", content=b"x" * 100_000, headers=headers).status_code == 413
    assert len(started) == 1


def test_a_job_that_was_never_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match="no job 'nobody' was built"):
        recorded_run("nobody", tmp_path)
