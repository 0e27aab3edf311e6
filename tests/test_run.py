"""A whole job against a provider: every row accounted for."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from overnight.errors import DatasetError, HomeError, InvalidRequests, LedgerError, OvernightError, ProviderError
from overnight.ledger.database import Ledger
from overnight.ledger.lease import leased
from overnight.ledger.run import Run
from overnight.ledger.states import State
from overnight.providers.local import endpoint_environment
from simulation.provider import ModelProvider
from tasks.clean import clean_job
from tasks.submit import submit, submit_shards
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import advance, build, finish, run_job


def counts(table: pd.DataFrame) -> dict[str, int]:
    return {str(status): int(rows) for status, rows in table["status"].value_counts().items()}


def test_every_row_gets_its_own_answer_in_the_datasets_order(make_job: MakeJob, tmp_path: Path) -> None:
    texts = [f"text {n} ü\u2028\x00" for n in range(25)]
    _, table = run_job(make_job(texts, limits={"max_requests": 10, "poll_seconds": 0.01}), tmp_path / "home")
    assert table["id"].to_list() == list(range(25))
    assert table["answer"].to_list() == [f"echo: {text}" for text in texts]
    assert set(table["status"]) == {"succeeded"}
    assert (table["input_tokens"] == 10).all()


def test_the_joined_table_has_the_datasets_columns_then_ours(make_job: MakeJob, tmp_path: Path) -> None:
    run, _ = run_job(make_job(["a"]), tmp_path / "home")
    names = pq.read_schema(run.folder.joined).names
    assert names == [
        "id", "text", "custom_id", "status", "answer", "answer_reasoning", "finish_reason", "error_code", "error_message", "model",
        "input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens", "cost_usd", "batch_id", "attempts",
    ]  # fmt: skip


def test_identical_rows_are_sent_once_and_answered_all(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    job = make_job(["same"] * 10 + ["other"], provider={
        "profile": "custom", "base_url": provider_server.base_url, "prices": {"input": 1, "output": 2}})  # fmt: skip
    _, table = run_job(job, tmp_path / "home")
    assert sum(provider_server.books()["billed"].values()) == 2
    assert counts(table) == {"succeeded": 11}
    assert table["cost_usd"].sum() == pytest.approx(2 * (10 * 1 + 5 * 2) / 1e6)


def test_without_deduplication_each_row_is_sent(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    _, table = run_job(make_job(["same"] * 3, deduplicate=False), tmp_path / "home")
    assert sum(provider_server.books()["billed"].values()) == table["custom_id"].nunique() == 3


def test_a_row_more_sends_one_request_more_and_nothing_else(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    texts: list[str | None] = [f"t{n}" for n in range(20)]
    run_job(make_job(texts), tmp_path / "home")
    _, table = run_job(make_job([*texts, "new"]), tmp_path / "home")
    assert set(provider_server.books()["billed"].values()) == {1}
    assert len(table) == sum(provider_server.books()["billed"].values()) == 21
    _, again = run_job(make_job([*texts, "new"]), tmp_path / "home")
    assert provider_server.books()["calls"]["create"] == 2
    assert again.equals(table)


def test_rows_that_cannot_be_sent_fail_alone(make_job: MakeJob, tmp_path: Path) -> None:
    limits = {"poll_seconds": 0.01, "max_bytes": 2000}
    run, table = run_job(make_job(["fine", None, "x" * 3000], limits=limits), tmp_path / "home")
    assert table["status"].to_list() == ["succeeded", "failed", "failed"]
    assert table["error_code"].to_list()[1:] == ["null_input", "too_large"]
    assert table["attempts"].to_list() == [1, 0, 0]
    assert pd.read_parquet(run.folder.failed)["id"].to_list() == [1, 2]


def test_only_what_may_work_later_is_sent_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    texts: list[str | None] = ["fine", "[500 once]", "[429]", "[400]", "[refuse]", "[cut]"]
    _, table = run_job(make_job(texts), tmp_path / "home")
    assert table["status"].to_list() == ["succeeded", "succeeded", "failed", "failed", "refused", "invalid"]
    assert table["attempts"].to_list() == [1, 2, 3, 1, 1, 2]
    assert table["error_code"].to_list()[2:] == ["rate_limit_exceeded", "invalid_request", "refusal", "cut"]
    assert sum(provider_server.books()["billed"].values()) == 10


@pytest.mark.parametrize(
    "behaviour",
    [
        pytest.param({"drop": [3], "twice": [5]}, id="one line missing, one twice"),
        pytest.param({"foreign": 2}, id="lines that nobody sent"),
        pytest.param({"torn": True}, id="torn last line"),
        pytest.param({"end": "expired", "answer": 16}, id="expired with 16 of 20 done"),
        pytest.param({"null_output": True}, id="answers in the error file"),
        pytest.param({"empty_error_file": True}, id="empty error file"),
        pytest.param({"upper": True, "polls": 2}, id="statuses in capitals"),
        pytest.param({"counts": "null", "polls": 1}, id="null counts"),
        pytest.param({"counts": "wrong"}, id="wrong counts"),
        pytest.param({"shape": "string_body"}, id="bodies as text"),
        pytest.param({"shape": "bare"}, id="bare responses"),
        pytest.param({"end": "failed", "errors": [{"code": "token_limit_exceeded", "message": "Limit: 90,000 enqueued tokens"}]},
                     id="queue full after the create"),
    ],
)  # fmt: skip
def test_every_row_is_answered_whatever_the_first_batch_does(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, behaviour: dict[str, Any]
) -> None:
    provider_server.order(batches=[behaviour])
    _, table = run_job(make_job([f"t{n}" for n in range(20)]), tmp_path / "home")
    assert counts(table) == {"succeeded": 20}
    billed = provider_server.books()["billed"]
    lost = len(behaviour.get("drop", [])) + bool(behaviour.get("torn"))
    assert sum(count for name, count in billed.items() if not name.startswith("foreign")) == 20 + lost


def test_lines_that_failed_validation_fail_and_the_others_are_sent_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    errors = [{"code": "invalid_request", "message": "bad max_tokens", "line": 2}]
    provider_server.order(batches=[{"errors": errors}])
    _, table = run_job(make_job(["a", "b", "c"]), tmp_path / "home")
    assert table["status"].to_list() == ["succeeded", "failed", "succeeded"]
    assert table["error_message"][1] == "bad max_tokens"


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"status": 500, "effect": True}, id="500 after the work"),
        pytest.param({"status": 500}, id="500 before the work"),
        pytest.param({"cut": "before", "effect": True}, id="cut after the work"),
        pytest.param({"cut": "before"}, id="cut before the work"),
        pytest.param({"body": "<html/>", "effect": True}, id="HTML after the work"),
    ],
)
@pytest.mark.parametrize("echo", [True, False], ids=["metadata", "no metadata"])
def test_a_lost_reply_to_create_is_found_again_and_paid_once(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, fault: dict[str, Any], echo: bool
) -> None:
    provider_server.order(faults=[{"call": "create", **fault}], echo_metadata=echo)
    _, table = run_job(make_job(["a", "b"]), tmp_path / "home")
    assert counts(table) == {"succeeded": 2}
    assert len(provider_server.books()["batches"]) == 1


def test_the_number_of_open_batches_is_kept(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 2})
    limits = {"max_requests": 2, "max_open_batches": 2, "poll_seconds": 0.01}
    run = build(make_job([f"t{n}" for n in range(10)], limits=limits), tmp_path / "home")
    advance(run, patience=0)
    assert len(provider_server.books()["batches"]) == 2
    assert finish(run).statuses == {"succeeded": 10}


def test_a_typed_schema_makes_typed_columns(make_job: MakeJob, tmp_path: Path) -> None:
    task = {"kind": "classify", "text": "{{ text }}", "labels": ["even", "odd"]}
    _, table = run_job(make_job(["aa", "b"], task=task), tmp_path / "home")
    assert table["answer"].to_list() == ["even", "odd"]


def test_a_prefix_keeps_names_apart(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("text,answer\na,b\n")
    job = make_job([], dataset={"path": str(path)})
    with pytest.raises(OvernightError, match=r"columns named answer.*output\.prefix"):
        build(job, tmp_path / "home")
    _, table = run_job(job | {"output": {"prefix": "ai_"}}, tmp_path / "home")
    assert (table["answer"][0], table["ai_answer"][0], table["ai_status"][0]) == ("b", "echo: a", "succeeded")


def test_raw_bodies_and_batch_files_are_sent_as_they_are(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    line = {"custom_id": "mine-1", "method": "POST", "url": "/v1/chat/completions", "body": body}
    other = line | {"custom_id": "mine-2", "body": body | {"model": "n"}}
    path = tmp_path / "requests.jsonl"
    path.write_text(json.dumps(line) + "\n\n" + json.dumps(other) + "\n")
    common = {"model": None, "dataset": {"path": str(path)}}
    _, table = run_job(make_job([], task={"kind": "raw"}, **common), tmp_path / "home")
    assert table[["line", "custom_id", "answer"]].to_numpy().tolist() == [
        [1, "mine-1", "echo: hi"], [3, "mine-2", "echo: hi"]]  # fmt: skip
    assert len(provider_server.books()["batches"]) == 2  # one model a batch
    path.write_text(json.dumps({"b": json.dumps(body), "n": 1}) + "\n")
    job = make_job([], name="column", task={"kind": "raw", "body": "b"}, **common)
    assert run_job(job, tmp_path / "home")[1]["answer"].to_list() == ["echo: hi"]


def open_job(make_job: MakeJob, tmp_path: Path, server: ProviderProcess) -> Run:
    server.order(default={"polls": 10_000})
    run = build(make_job(["a", "b"]), tmp_path / "home")
    advance(run, patience=0)
    return run


def test_another_definition_is_refused_while_batches_are_open(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    open_job(make_job, tmp_path, provider_server)
    with pytest.raises(HomeError, match=r"1 open batches with another model: .* another name"):
        build(make_job(["a", "b"], model="other"), tmp_path / "home")
    assert not (tmp_path / "home/texts/.staging").exists()


def test_a_definition_that_was_never_sent_gives_way(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    build(make_job(["a", "b"]), tmp_path / "home")
    _, table = run_job(make_job(["a", "b"], model="other"), tmp_path / "home")
    assert set(table["model"]) == {"other"}
    assert sum(provider_server.books()["billed"].values()) == 2


def test_a_dataset_that_changed_under_way_is_not_joined(make_job: MakeJob, tmp_path: Path) -> None:
    run = build(make_job(["a", "b"]), tmp_path / "home")
    advance(run)
    make_job(["b", "a", "c"])
    with pytest.raises(DatasetError, match="changed while the job was under way"):
        finish(run)


def test_a_damaged_request_file_is_not_sent(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run = build(make_job(["a", "b"]), tmp_path / "home")
    shard = run.ledger.shards("texts")[0]
    (run.folder.requests / shard.file_name).write_text("{}\n")
    with pytest.raises(LedgerError, match="not as it was planned"):
        submit_shards.fn(run, (shard,), "nobody")
    assert provider_server.books()["calls"].get("upload") is None


def test_a_damaged_ledger_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, but it is long enough to be looked at" * 20)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"ledger\.db cannot be used"):
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_full_queue_is_filled_in_waves_with_at_most_one_refusal_each(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    texts: list[str | None] = [f"{n} " + "x" * 200 for n in range(40)]
    provider_server.order(queue_limit=2500, default={"polls": 1})
    provider = {"profile": "openai", "base_url": provider_server.base_url, "api_key_env": "OVERNIGHT_KEY_TESTS"}
    job = make_job(texts, provider=provider, limits={"max_requests": 10, "poll_seconds": 0.02})
    _, table = run_job(job, tmp_path / "home")
    assert counts(table) == {"succeeded": 40}
    books = provider_server.books()
    refused = sum(batch["status"] == "failed" for batch in books["batches"])
    assert set(books["billed"].values()) == {1}
    assert refused <= len(books["batches"]) - refused


@pytest.mark.parametrize("refusal", ["early", "late"])
def test_a_shard_that_no_queue_takes_is_cut_until_it_fits(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, refusal: str
) -> None:
    provider_server.order(queue_limit=700, queue_refusal=refusal)
    texts: list[str | None] = [f"{n} " + "x" * 200 for n in range(16)]
    run, table = run_job(make_job(texts), tmp_path / "home")
    assert counts(table) == {"succeeded": 16}
    assert set(provider_server.books()["billed"].values()) == {1}
    assert run.ledger.learned_limit(run.job.profile.queue, "some-model", 0.0) is not None


def test_the_budget_is_shared_by_all_jobs_of_a_home(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 10_000})
    limits = {"poll_seconds": 0.01, "max_enqueued_tokens": 500}
    first = build(make_job(["x" * 1000], name="first", limits=limits), tmp_path / "home")
    second = build(make_job(["y" * 1500], name="second", limits=limits), tmp_path / "home")
    advance(first, patience=0)
    advance(second, patience=0)
    assert len(provider_server.books()["batches"]) == 1


def test_an_invalid_answer_is_asked_for_again_with_what_was_wrong(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    task = {"kind": "classify", "text": "{{ text }}", "labels": ["a", "b"]}
    run, table = run_job(make_job(["[garbage once]", "[garbage]"], task=task), tmp_path / "home")
    assert table["status"].to_list() == ["succeeded", "invalid"]
    assert table["attempts"].to_list() == [2, 2]
    second = sorted(run.folder.requests.glob("*.jsonl"))[1].read_text().splitlines()
    messages = json.loads(second[0])["body"]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[2]["content"] == "not what was asked for"
    assert "not one of a, b" in messages[3]["content"]
    attempts = pd.concat(pd.read_parquet(part) for part in run.folder.results.glob("*.parquet"))
    assert sorted(attempts["verdict"]) == ["invalid", "invalid", "invalid", "succeeded"]


def test_a_cut_answer_is_asked_for_again_with_more_tokens(make_job: MakeJob, tmp_path: Path) -> None:
    run, table = run_job(make_job(["[cut once]"], parameters={"max_tokens": 50}), tmp_path / "home")
    assert table["status"].to_list() == ["succeeded"]
    second = json.loads(sorted(run.folder.requests.glob("*.jsonl"))[1].read_text())
    assert second["body"]["max_tokens"] == 100
    _, table = run_job(
        make_job(["[cut]"], name="never", limits={"max_reasks": 0, "poll_seconds": 0.01}), tmp_path / "home"
    )
    assert (table["status"][0], table["attempts"][0], table["answer"][0]) == ("invalid", 1, "echo: [cut]")


def test_a_batch_that_expires_again_and_again_is_given_up(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"end": "expired", "answer": 0})
    _, table = run_job(make_job(["a", "b"]), tmp_path / "home")
    assert set(table["status"]) == {"expired"}
    assert len(provider_server.books()["batches"]) <= 7


def test_what_expired_goes_out_in_smaller_shards(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(batches=[{"end": "expired", "answer": 4}])
    run, table = run_job(make_job([f"t{n}" for n in range(20)]), tmp_path / "home")
    assert counts(table) == {"succeeded": 20}
    assert [shard.requests for shard in run.ledger.shards("texts")] == [20, 10, 6]
    assert {shard.attempt for shard in run.ledger.shards("texts")} == {1}


def test_a_batch_past_its_deadline_is_cancelled_harvested_and_its_rest_sent_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(batches=[{"polls": 10_000, "answer": 3}])
    limits = {"deadline_hours": 1e-6, "poll_seconds": 0.02, "max_attempts": 5}
    _, table = run_job(make_job([f"t{n}" for n in range(5)], limits=limits), tmp_path / "home")
    assert counts(table) == {"succeeded": 5}
    assert provider_server.books()["calls"]["cancel"] == 1
    assert set(provider_server.books()["billed"].values()) == {1}


def test_what_a_person_cancelled_is_not_sent_again_by_itself(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(batches=[{"end": "cancelled", "answer": 1}])
    _, table = run_job(make_job(["a", "b"]), tmp_path / "home")
    assert table["status"].to_list() == ["succeeded", "expired"]
    assert table["error_code"][1] == "batch_cancelled"
    _, table = run_job(make_job(["a", "b"]), tmp_path / "home")
    assert counts(table) == {"succeeded": 2}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_few_404s_and_poll_errors_lose_nothing(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    quick = {"headers": {"Retry-After": "0"}}
    faults = [
        {"call": "retrieve", "status": 404, "times": 4},
        {"call": "retrieve", "status": 503, "times": 18, **quick},
        {"call": "retrieve", "status": 200, "body": "<html>maintenance</html>", "times": 3},
        {"call": "retrieve", "cut": "before", "times": 3},
        {"call": "retrieve", "status": 429, "headers": {"Retry-After": "300"}, "times": 1},
    ]
    provider_server.order(faults=faults)
    _, table = run_job(make_job(["a"]), tmp_path / "home")
    assert (counts(table), len(provider_server.books()["batches"])) == ({"succeeded": 1}, 1)


@pytest.mark.parametrize("when", ["create", "later"])
def test_a_file_that_is_not_there_yet_is_tried_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, when: str
) -> None:
    error = {"code": "invalid_request", "message": "Cannot find file file-000001, or organization has no access"}
    if when == "create":
        provider_server.order(faults=[{"call": "create", "status": 400, "body": {"error": error}}])
    else:
        provider_server.order(batches=[{"errors": [error]}])
    _, table = run_job(make_job(["a"]), tmp_path / "home")
    assert counts(table) == {"succeeded": 1}
    assert provider_server.books()["calls"]["upload"] == 1


@pytest.mark.parametrize(
    "trouble",
    [
        {"faults": [{"call": "create", "status": 401, "body": {"error": {"message": "wrong key"}}}]},
        {"faults": [{"call": "retrieve", "status": 401, "body": {"error": {"message": "wrong key"}}}]},
        {"faults": [{"call": "create", "status": 429, "body": {"error": {"code": "insufficient_quota"}}}]},
        {"default": {"errors": [{"code": "billing_hard_limit_reached", "message": "no money"}]}},
    ],
    ids=["key at create", "key at poll", "quota at create", "billing later"],
)
def test_trouble_with_the_account_stops_the_job_at_once(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, trouble: dict[str, Any]
) -> None:
    provider_server.order(**trouble)
    run = build(make_job(["a", "b"]), tmp_path / "home")
    with pytest.raises(ProviderError):
        finish(run)
    assert len(provider_server.books()["batches"]) <= 1
    provider_server.order(default={})
    assert finish(run).statuses == {"succeeded": 2}


def test_an_upload_whose_reply_was_lost_is_adopted(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "upload", "cut": "before", "effect": True, "times": 3}])
    _, table = run_job(make_job(["a"]), tmp_path / "home")
    assert counts(table) == {"succeeded": 1}
    assert provider_server.books()["calls"]["upload"] == 3


def test_files_are_deleted_at_the_provider_once_they_are_joined(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run = build(make_job(["a", "[400]"]), tmp_path / "home")
    finish(run)
    assert len(provider_server.books()["files"]) == 3
    assert clean_job.fn(run) == 1
    assert provider_server.books()["files"] == []
    assert clean_job.fn(run) == 0


def test_uploads_whose_reply_was_lost_are_deleted_too(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "upload", "cut": "before", "effect": True, "times": 3}])
    run = build(make_job(["a"]), tmp_path / "home")
    assert finish(run).statuses == {"succeeded": 1}
    assert len(provider_server.books()["files"]) == 4  # three uploads of the same file, and the answers
    assert clean_job.fn(run) == 1
    assert provider_server.books()["files"] == []


def test_everything_at_once_still_pays_once(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(
        faults=[
            {"call": "upload", "cut": "before"}, {"call": "create", "status": 500, "effect": True},
            {"call": "create", "cut": "middle", "effect": True}, {"call": "retrieve", "status": 502, "times": 6},
            {"call": "content", "cut": "middle", "effect": True, "times": 2},
        ],
        batches=[{"end": "expired", "answer": 6, "drop": [2], "twice": [1], "shape": "string_body"},
                 {"torn": True, "upper": True, "foreign": 1, "counts": "null"}],
        queue_limit=3000,
    )  # fmt: skip
    texts: list[str | None] = [*(f"t{n}" for n in range(19)), *["t0"] * 10, "[500 once]"]
    job = make_job(texts, limits={"max_requests": 10, "poll_seconds": 0.02})
    _, table = run_job(job, tmp_path / "home")
    assert counts(table) == {"succeeded": 30}
    billed = provider_server.books()["billed"]
    owed = 20 + 1 + 1  # each request, the dropped line, the one that failed once; what is torn is a foreign line
    assert sum(billed.values()) == owed
    assert max(billed.values()) == 2


def test_a_create_that_is_still_under_way_is_waited_for(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    """The provider made the batch but does not list it yet: nothing is created meanwhile."""
    empty = {"call": "list", "body": {"data": [], "has_more": False}, "times": 5}
    check = {"call": "list", "body": {"data": []}}
    provider_server.order(faults=[check, {"call": "create", "status": 500, "effect": True}, empty])
    limits = {"lost_reply_seconds": 30, "poll_seconds": 0.01}
    _, table = run_job(make_job(["a"], limits=limits), tmp_path / "home")
    assert counts(table) == {"succeeded": 1}
    assert provider_server.books()["calls"]["create"] == 1


@pytest.mark.parametrize("found", [None, "batch-of-another-process"], ids=["gave it up", "has another batch"])
def test_a_batch_that_is_made_when_another_process_went_on_is_cancelled(
    make_job: MakeJob, tmp_path: Path, found: str | None
) -> None:
    run = build(make_job(["a"]), tmp_path / "home")

    def go_on() -> None:
        """While the reply is under way: the process was stopped for as long as a lost reply is waited for."""
        (shard,) = run.ledger.shards(run.job.name)
        if provider.made and shard.open_batch and shard.open_batch.state is State.CREATING:
            unknown = run.ledger.move(shard.open_batch, State.UNKNOWN)
            if found is None:
                run.ledger.refuse(unknown, time.time(), time.time(), "the job was stopped")
            else:
                run.ledger.move(unknown, State.SUBMITTED, batch_id=found)

    provider = ModelProvider(run.job.profile, go_on, "both")
    with leased(run.ledger, run.job.name) as owner, pytest.raises(LedgerError, match="another process moved it on"):
        submit(run, provider, run.ledger.shards(run.job.name)[0], owner)
    assert [made.status for made in provider.made.values()] == ["cancelling"]


def test_a_create_that_always_fails_is_not_tried_without_end(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "create", "status": 500, "times": 1000}])
    run = build(make_job(["a"], limits={"lost_reply_seconds": 0, "poll_seconds": 0.01}), tmp_path / "home")
    advance(run)
    assert provider_server.books()["calls"]["create"] == 1
    advance(run)
    assert provider_server.books()["calls"]["create"] == 2


def test_a_batch_that_ended_while_nobody_looked_is_collected_past_its_deadline(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "cancel", "status": 409, "times": 100}])
    limits = {"deadline_hours": 1e-7, "poll_seconds": 0.01}
    _, table = run_job(make_job(["a"], limits=limits), tmp_path / "home")
    assert counts(table) == {"succeeded": 1}
    assert "cancel" not in provider_server.books()["calls"]


def test_a_download_that_ends_early_without_a_length_is_noticed(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "content", "cut": "silent", "effect": True, "times": 2}])
    _, table = run_job(make_job([f"t{n}" for n in range(20)]), tmp_path / "home")
    assert counts(table) == {"succeeded": 20}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_raw_request_that_changed_under_its_id_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    line = {"custom_id": "q-1", "method": "POST", "url": "/v1/chat/completions"}
    body = {"model": "m", "messages": [{"role": "user", "content": "first"}]}
    job = make_job([], task={"kind": "raw"}, model=None, dataset={"path": str(path)})
    path.write_text(json.dumps(line | {"body": body}) + "\n")
    run_job(job, tmp_path / "home")
    path.write_text(json.dumps(line | {"body": body | {"temperature": 1}}) + "\n")
    with pytest.raises(InvalidRequests, match="'q-1' was sent with another body before"):
        build(job, tmp_path / "home")


def test_a_row_on_top_makes_no_other_request_of_the_rows_below(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run_job(make_job(["a", "b", "a"], deduplicate=False), tmp_path / "home")
    _, table = run_job(make_job(["new", "a", "b", "a"], deduplicate=False), tmp_path / "home")
    assert counts(table) == {"succeeded": 4}
    assert sum(provider_server.books()["billed"].values()) == 4


def test_shards_that_were_never_sent_follow_the_limits_and_the_rows_of_the_next_run(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(faults=[{"call": "upload", "status": 413, "body": {"error": {"message": "too large"}}}])
    run = build(make_job(["a", "b", "c", "d"]), tmp_path / "home")
    with pytest.raises(ProviderError, match="too large"):
        advance(run)
    limits = {"max_requests": 1, "poll_seconds": 0.01}
    _, table = run_job(make_job(["a", "b"], model="other", limits=limits), tmp_path / "home")
    assert counts(table) == {"succeeded": 2}
    books = provider_server.books()
    assert ([batch["lines"] for batch in books["batches"]], sum(books["billed"].values())) == ([1, 1], 2)


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ("", {"sql": "select 'a' as text, interval 1 month as span order by 1"},
         "column 'span' .* cannot be kept in Parquet"),
        ('{"text": "a", "tags": ["x"]}', {"report": {"compare": "tags"}}, "report.compare: 'tags'"),
    ],
    ids=["column that Parquet lacks", "compare with a list"],
)  # fmt: skip
def test_what_the_join_could_not_do_is_refused_before_anything_is_sent(
    make_job: MakeJob, tmp_path: Path, row: str, fields: dict[str, Any], message: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n")
    dataset = {"sql": fields.pop("sql")} if "sql" in fields else {"path": str(path)}
    with pytest.raises(OvernightError, match=message):
        build(make_job([], dataset=dataset, **fields), tmp_path / "home")


def test_a_schema_file_that_changed_is_another_definition(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 10_000})
    schema = tmp_path / "schema.json"
    schema.write_text('{"type": "object", "properties": {"a": {"type": "string"}}}')
    job = make_job(["a"], task={"kind": "generate", "prompt": "{{ text }}", "schema": str(schema)})
    advance(build(job, tmp_path / "home"), patience=0)
    schema.write_text('{"type": "object", "properties": {"b": {"type": "string"}}}')
    with pytest.raises(HomeError, match="another schema"):
        build(job, tmp_path / "home")


def test_the_embedded_endpoint_sees_no_settings_of_an_endpoint_that_may_cost() -> None:
    given = {"PATH": "/bin", "OVERNIGHT_ENDPOINT_UPSTREAM": "https://api.example", "OVERNIGHT_HOME": "/runs"}
    assert endpoint_environment(given) == {"PATH": "/bin", "OVERNIGHT_HOME": "/runs", "OMP_WAIT_POLICY": "passive"}


def test_a_request_line_that_names_two_ids_is_refused(make_job: MakeJob, tmp_path: Path) -> None:
    body = '"method": "POST", "url": "/v1/chat/completions", "body": {"model": "m", "messages": []}'
    path = tmp_path / "two.jsonl"
    path.write_text(f'{{"custom_id": "a", {body}}}\n{{"custom_id":"b", "custom_id":"c", {body}}}\n')
    job = make_job([], task={"kind": "raw"}, dataset={"path": str(path)})
    del job["model"]
    with pytest.raises(InvalidRequests, match=r"two\.jsonl:2: custom_id stands in it twice"):
        run_job(job, tmp_path / "home")
