"""The ways in which batches fail, each seen at a provider: 20 kinds, and what comes of each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from overnight.answers.trouble import troubled
from overnight.errors import ProviderError
from overnight.job.profiles import Profile
from overnight.limits.queue import pauses
from overnight.providers.provider import Provider
from tasks.wait import poll_all
from tests.cases import Case, Outcome, case, check_case
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import advance, build, finish

FULL = {"code": "token_limit_exceeded", "message": "Enqueued token limit reached. Please try again once some in_progress batches have been completed."}  # fmt: skip
NO_FILE = {"code": "invalid_request", "message": "Cannot find file file-000001, or organization org-1 does not have access to it."}  # fmt: skip
VALIDATION = {"code": "invalid_request", "message": "max_tokens is too small", "line": 3}
SOON = {"headers": {"Retry-After": "0"}}
LATE = {"limits": {"deadline_hours": 2e-6, "poll_seconds": 0.02, "max_attempts": 9}}


def mode(number: int, what: str, orders: dict[str, Any] | None = None, **fields: Any) -> Any:
    return case(number, "failure", what, orders, **fields)


def first(**behaviour: Any) -> dict[str, Any]:
    return {"batches": [behaviour]}


def fails(call: str, **fault: Any) -> dict[str, Any]:
    return {"faults": [{"call": call, **fault}]}


def first_error(code: str) -> Any:
    return lambda outcome: bool((outcome.table["error_code"].dropna() == code).all())


def called_once(call: str) -> Any:
    return lambda outcome: outcome.books["calls"][call] == 1


def cost_is_of_answers(outcome: Outcome) -> bool:
    """Ten tokens in, five out, for each row that has an answer, in whichever attempt it came."""
    tokens = outcome.table[["input_tokens", "output_tokens"]].sum().to_list()
    return tokens == [60, 30] and outcome.table["cost_usd"].sum() == pytest.approx(60e-6 + 60e-6)


FAILURES = [
    mode(1, "a batch without failures has rows of status 0", texts=("t0", "t1", "[000]"), batches=3, billed=5,
         statuses={"succeeded": 2, "failed": 1}, also=first_error("http_0")),
    mode(1, "rows of status 0 work the second time", first(counts="wrong"), texts=("t0", "[000 once]"), batches=2,
         billed=3, statuses={"succeeded": 2}),
    mode(2, "all rows failed, and there is no output file", texts=("[400]", "[404]"), billed=2, statuses={"failed": 2}),
    mode(2, "the answers stand in the error file", first(null_output=True)),
    mode(3, "a line is missing, one stands twice, one is nobody's", first(drop=[1], twice=[2], foreign=1), batches=2,
         billed=7),
    mode(3, "the last line is torn", first(torn=True), batches=2, billed=7),
    mode(3, "a request has an answer and an error", first(failed_too=[0, 3])),
    mode(3, "lines in another order", first(backwards=True),
         also=lambda o: o.table["answer"].to_list() == [f"echo: t{n}" for n in range(6)]),
    mode(4, "a refusal in the output file is no answer", first(mixed=True), texts=("t0", "[400]"), billed=2,
         statuses={"succeeded": 1, "failed": 1}),
    mode(5, "expired with 4 of 6 done", first(end="expired", answer=4), batches=2),
    mode(5, "cancelled with 4 of 6 done", first(end="cancelled", answer=4), statuses={"succeeded": 4, "expired": 2},
         billed=4),
    mode(5, "failed with 4 of 6 done", first(end="failed", answer=4), batches=2),
    mode(5, "a full queue with 4 of 6 done", first(end="failed", answer=4, late_errors=[FULL]), batches=2),
    mode(5, "a full queue with two empty files", first(end="failed", answer=0, both_files=True, late_errors=[FULL]),
         batches=None),
    mode(5, "an expired batch holds other errors too", first(end="expired", answer=2), texts=("t0", "[500 once]", "t2"),
         batches=None, billed=4, statuses={"succeeded": 3}),
    mode(5, "an expired batch holds an error and no answer", first(end="expired", answer=1), texts=("[500 once]", "t1", "t2"),
         batches=None, billed=4, statuses={"succeeded": 3}),
    mode(6, "finalizing without an end", first(words={"in_progress": "finalizing"}, polls=10_000, answer=4), batches=None,
         job=LATE, also=lambda o: o.books["calls"]["cancel"] >= 1),
    mode(7, "the queue is full after the create call", first(errors=[FULL]), batches=None),
    mode(7, "the queue is full at the create call", fails("create", status=429, body={"error": FULL}), batches=None),
    mode(7, "the queue takes only half a batch", {"queue_limit": 260, "queue_refusal": "late"}, batches=None),
    mode(8, "created, and the reply is a 500", fails("create", status=500, effect=True), also=called_once("create")),
    mode(8, "created, and the reply is cut", fails("create", cut="before", effect=True), also=called_once("create")),
    mode(8, "not created, and the reply is a 503", fails("create", status=503),
         also=lambda o: o.books["calls"]["create"] == 2),
    mode(9, "the file cannot be found at the create call", fails("create", status=400, body={"error": NO_FILE}),
         also=called_once("upload")),
    mode(9, "the file cannot be found later", first(errors=[NO_FILE]), batches=2, also=called_once("upload")),
    mode(10, "one line fails validation", first(errors=[VALIDATION]), batches=2, billed=5,
         statuses={"succeeded": 5, "failed": 1}),
    mode(10, "all lines fail validation", first(errors=[{**VALIDATION, "line": n} for n in range(1, 7)]), billed=0,
         statuses={"failed": 6}),
    mode(11, "a download is cut", fails("content", cut="middle", effect=True, times=2)),
    mode(11, "a download without a length is cut", fails("content", cut="silent", effect=True, times=2)),
    mode(12, "502 and HTML when polled", {"faults": [{"call": "retrieve", "status": 502, "times": 7, **SOON},
                                                    {"call": "retrieve", "body": "<html>busy</html>", "times": 2}]}),
    mode(12, "HTML in place of the results", fails("content", body="<!doctype html><p>busy", times=2)),
    mode(12, "an error object in place of the results", fails("content", body={"error": {"message": "busy"}}, times=2)),
    mode(13, "five 404s", fails("retrieve", status=404, times=5)),
    mode(13, "nobody knows the batch for now", first(polls=2, vanish=1), statuses={"missing": 6}, billed=0,
         also=first_error("awaited")),
    mode(14, "the result file is not there at first", fails("content", status=404, times=3)),
    mode(14, "the result file is not there for long", fails("content", status=404, times=500),
         statuses={"missing": 6}, also=first_error("awaited")),
    mode(15, "the cost is that of the answers", first(end="expired", answer=4), batches=2, also=cost_is_of_answers,
         job={"provider": {"profile": "custom", "prices": {"input": 1, "output": 2}}}),
    mode(16, "fewer bytes arrive than were uploaded", fails("upload", body={"id": "file-x", "bytes": 7}),
         also=lambda o: o.books["calls"]["upload"] == 2),
    mode(16, "an upload is cut, and arrived", fails("upload", cut="before", effect=True, times=3),
         also=lambda o: o.books["created"][0]["input_file_id"] in ("file-000001", "file-000002", "file-000003")),
    mode(17, "429 with Retry-After: 300 when polled", fails("retrieve", status=429, headers={"Retry-After": "300"})),
    mode(18, "refusals and cut answers come as 200", texts=("t0", "[refuse]", "[cut]"), batches=2, billed=4,
         statuses={"succeeded": 1, "refused": 1, "invalid": 1}),
    mode(18, "a cut answer is whole the second time", texts=("t0", "[cut once]"), batches=2, billed=3,
         statuses={"succeeded": 2}),
    mode(19, "429, 5xx and 408 work the second time", texts=("[429 once]", "[500 once]", "[408 once]", "[503 once]"),
         batches=2, billed=8, statuses={"succeeded": 4}),
    mode(19, "400, 401, 404, 413 and 422 do not", texts=("[400]", "[401]", "[404]", "[413]", "[422]"), billed=5,
         statuses={"failed": 5}),
    mode(20, "counts grow while it is cancelled", first(polls=10_000, answer=4), batches=None, job=LATE),
]  # fmt: skip


@pytest.mark.parametrize("one", FAILURES)
def test_a_failure_loses_no_row_and_pays_for_none_twice(
    one: Case, make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    if "provider" in one.job:
        one.job["provider"] = {"base_url": provider_server.base_url, **one.job["provider"]}
    check_case(one, make_job, tmp_path, provider_server)


def test_failure_07_a_request_above_the_whole_queue_fails_and_is_not_tried_without_a_pause(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(queue_limit=100, queue_refusal="early")
    run = build(make_job(["x" * 2000, "small"]), tmp_path / "home")
    assert finish(run).statuses == {"failed": 1, "succeeded": 1}
    books = provider_server.books()
    assert sum(books["billed"].values()) == 1
    assert books["calls"]["create"] <= 6


@pytest.mark.parametrize("others", [0, 3])
def test_failure_07_a_queue_that_stays_full_is_tried_in_peace_and_says_why(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, others: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Other programs of the account fill it: no limit is named, and nothing can be learned from one request."""
    caplog.set_level("INFO")
    provider_server.order(faults=[{"call": "create", "status": 429, "body": {"error": FULL}, "times": 10_000}])
    texts: list[str | None] = [f"t{n}" for n in range(1 + others)]
    limits = {"poll_seconds": 0.05, "max_requests": 1, "max_enqueued_tokens": 1_000_000}
    run = build(make_job(texts, limits=limits), tmp_path / "home")
    until = time.monotonic() + 1.2
    while time.monotonic() < until:
        advance(run, patience=0.1)
    assert 1 <= provider_server.books()["calls"]["create"] <= 4 + 4 * others
    reasons = [shard.hold_reason or "" for shard in run.ledger.shards("texts")]
    assert all("token_limit_exceeded" in why or "it would not fit" in why for why in reasons)
    assert any("token_limit_exceeded" in why for why in reasons)
    assert "the queue is full, it waits" in caplog.text


def test_failure_07_a_wave_that_waits_keeps_the_reason_and_logs_it_once(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    provider_server.order(default={"polls": 3})
    limits = {"poll_seconds": 0.01, "max_requests": 2, "max_enqueued_tokens": 600}
    run = build(make_job(["x" * 800 + str(n) for n in range(6)], limits=limits), tmp_path / "home")
    for _ in range(3):
        advance(run, patience=0)
    reasons = {shard.hold_reason for shard in run.ledger.shards("texts") if shard.open_batch is None}
    assert reasons == {"it would not fit: the queue of some-model takes 600 tokens"}
    assert caplog.text.count("it would not fit") == 1
    assert finish(run).statuses == {"succeeded": 6}
    assert [bool(shard.hold_reason) for shard in run.ledger.shards("texts")] == [
        False,
        True,
        True,
    ]  # kept for the report


def test_failure_08_a_second_batch_that_shows_late_is_cancelled(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    """The listing lagged for longer than a lost reply is waited for: the first batch shows when there is a second."""
    empty = {"call": "list", "body": {"data": [], "has_more": False}, "times": 2}
    check = {"call": "list", "body": {"data": []}}
    lost = {"call": "create", "status": 500, "effect": True}
    provider_server.order(faults=[check, lost, empty], default={"polls": 2})
    limits = {"lost_reply_seconds": 0, "poll_seconds": 0.01}
    run = build(make_job(["a", "b"], limits=limits), tmp_path / "home")
    assert finish(run).statuses == {"succeeded": 2}
    first_batch, second = provider_server.books()["batches"]
    assert (first_batch["status"], second["status"]) == ("cancelling", "completed")
    assert set(provider_server.books()["billed"].values()) == {1}


def test_failure_08_of_two_batches_of_an_attempt_the_oldest_is_adopted(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    check = {"call": "list", "body": {"data": []}}
    lost = {"call": "create", "status": 500, "effect": True, "times": 2}
    empty = {"call": "list", "body": {"data": [], "has_more": False}, "times": 2}
    provider_server.order(faults=[check, lost, empty], default={"polls": 1})
    run = build(make_job(["a"], limits={"lost_reply_seconds": 0, "poll_seconds": 0.01}), tmp_path / "home")
    assert finish(run).statuses == {"succeeded": 1}
    (batch,) = run.ledger.shards("texts")[0].batches
    statuses = [made["status"] for made in provider_server.books()["batches"]]
    assert (batch.batch_id, batch.creates, statuses) == ("batch_000001", 2, ["completed", "cancelling"])
    assert set(provider_server.books()["billed"].values()) == {1}


def test_failure_11_12_results_that_never_arrive_are_no_missing_rows(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "content", "body": "<html>busy</html>", "times": 4}])
    run = build(make_job(["a"]), tmp_path / "home")
    advance(run)
    ((_, batch),) = troubled(run.ledger.shards("texts"))
    assert "is no result file but: <html>busy" in str(batch.trouble)
    assert list(run.folder.responses.iterdir()) == []
    assert finish(run).statuses == {"succeeded": 1}
    assert set(provider_server.books()["billed"].values()) == {1}


@pytest.mark.parametrize("said", ["Upload file number exceed limit", "Storage quota exceeded: 2 GB"])
def test_failure_16_a_full_store_at_the_provider_stops_the_job_and_names_it(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, said: str
) -> None:
    provider_server.order(faults=[{"call": "upload", "status": 400, "body": {"error": {"message": said}}}])
    run = build(make_job(["a"]), tmp_path / "home")
    with pytest.raises(ProviderError, match=said):
        finish(run)
    assert provider_server.books()["billed"] == {}
    assert finish(run).statuses == {"succeeded": 1}
    assert provider_server.books()["calls"]["create"] == 1


def test_failure_06_a_cancel_call_that_failed_is_made_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "cancel", "status": 400}], batches=[{"polls": 10_000, "answer": 1}])
    limits = {"deadline_hours": 2e-6, "poll_seconds": 0.01, "max_attempts": 9}
    assert finish(build(make_job(["a", "b"], limits=limits), tmp_path / "home")).statuses == {"succeeded": 2}
    assert provider_server.books()["calls"]["cancel"] >= 2
    assert set(provider_server.books()["billed"].values()) == {1}


def test_failure_17_pauses_between_looks_are_half_a_minute_and_grow_to_five() -> None:
    found = [pause for pause, _ in zip(pauses(Profile.named("openai").poll_seconds), range(40), strict=False)]
    assert 24 <= found[0] <= 36
    assert max(found) <= 360


def test_one_look_costs_one_call_per_open_batch(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 10_000})
    run = build(make_job(["a", "b", "c"], limits={"max_requests": 1, "poll_seconds": 0.01}), tmp_path / "home")
    advance(run, patience=0)
    before = provider_server.books()["calls"]["retrieve"]
    with Provider(run.job.profile, "key") as provider:
        poll_all(run, provider)
    assert provider_server.books()["calls"]["retrieve"] == before + 3
