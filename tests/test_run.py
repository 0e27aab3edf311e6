"""A whole job against a provider: every row accounted for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from overnight.errors import DatasetError, HomeError, LedgerError, OvernightError
from overnight.ledger import Ledger
from overnight.run import Run
from tasks.submit import submit_shard
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
        "id", "text", "custom_id", "status", "answer", "finish_reason", "error_code", "error_message", "model",
        "input_tokens", "output_tokens", "cached_tokens", "cost_usd", "batch_id", "attempts",
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
    assert table["attempts"].to_list() == [1, 2, 3, 1, 1, 1]
    assert table["error_code"].to_list()[2:] == ["rate_limit_exceeded", "invalid_request", "refusal", "cut"]
    assert sum(provider_server.books()["billed"].values()) == 9


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
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, behaviour: dict[str, Any], no_hold: None
) -> None:
    provider_server.order(batches=[behaviour])
    _, table = run_job(make_job([f"t{n}" for n in range(20)]), tmp_path / "home")
    assert counts(table) == {"succeeded": 20}
    billed = provider_server.books()["billed"]
    lost = len(behaviour.get("drop", [])) + bool(behaviour.get("torn"))
    assert sum(count for name, count in billed.items() if not name.startswith("foreign")) == 20 + lost


@pytest.fixture
def no_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is tried again at once."""
    import tasks.wait  # noqa: PLC0415

    monkeypatch.setitem(vars(tasks.wait), "QUEUE_FULL_SECONDS", 0.0)


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
        submit_shard.fn(run, shard, "nobody")
    assert provider_server.books()["calls"].get("upload") is None


def test_a_damaged_ledger_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"this is no database, but it is long enough to be looked at" * 20)
    before = path.read_bytes()
    with pytest.raises(LedgerError, match=r"ledger\.db cannot be used"):
        Ledger(f"sqlite:///{path}")
    assert path.read_bytes() == before
