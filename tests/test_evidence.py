"""Every step that cannot be taken back needs evidence that no passing fault explains: numbered as the review found them.

Each test runs a job against the provider that misbehaves on order, over HTTP, and counts what was billed.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from overnight.answers.trouble import troubled
from overnight.builds.staging import stage
from overnight.errors import DatasetError, LedgerError, LedgerUnavailable, OtherAccount, ProviderError
from overnight.ledger.built_rows import BuiltRows, RowMap, built_map
from overnight.ledger.database import Ledger, _cached
from overnight.ledger.lease import check_lease, leased
from overnight.ledger.run import Run, open_run
from overnight.ledger.states import State
from overnight.providers.provider import Provider
from tasks.clean import clean
from tasks.join import join
from tasks.recover import recover
from tasks.submit import admit, submit
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import advance, age, build, finish, opened_by_four, run_job

KEY = "OVERNIGHT_KEY_EVIDENCE"


def counts(table: pd.DataFrame) -> dict[str, int]:
    return {str(status): int(rows) for status, rows in table["status"].value_counts().items()}


def joined(run: Run) -> pd.DataFrame:
    return pd.read_parquet(run.folder.joined)


def keyed(provider_server: ProviderProcess) -> dict[str, Any]:
    return {"profile": "custom", "base_url": provider_server.base_url, "api_key_env": KEY}


def cleaned(run: Run) -> int:
    with Provider(run.job.profile) as provider:
        return clean(run, provider)


def test_1_an_output_file_that_is_not_there_is_asked_for_until_it_is_and_nothing_is_deleted_or_paid_again(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(faults=[{"call": "content", "status": 404, "times": 9999}])
    run, table = run_job(make_job(["a", "b"]), tmp_path / "home")
    assert (counts(table), set(table["error_code"])) == ({"missing": 2}, {"awaited"})
    assert cleaned(run) == 0
    again = build(make_job(["a", "b"]), tmp_path / "home")
    age(run, 3 * 86_400)
    assert finish(again).statuses == {"missing": 2}
    assert "delete" not in provider_server.books()["calls"]
    provider_server.order(forgive=True)
    age(run, 86_400)
    assert finish(again).statuses == {"succeeded": 2}
    assert (provider_server.books()["calls"]["create"], set(provider_server.books()["billed"].values())) == (1, {1})
    assert cleaned(run) == 1


def test_1_after_the_retention_time_an_output_file_is_given_up_and_its_rows_are_not_paid_for_again(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(faults=[{"call": "content", "status": 404, "times": 9999}])
    run, _ = run_job(make_job(["a"]), tmp_path / "home")
    age(run, 31 * 86_400)
    assert finish(run).errors == {("missing", "batch_lost"): 1}
    assert cleaned(run) == 0
    assert finish(build(run.job, run.home)).statuses == {"missing": 1}
    assert provider_server.books()["calls"]["create"] == 1


def test_1_a_batch_whose_answers_did_not_all_come_keeps_its_files_at_the_provider(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(batches=[{"drop": [0]}])
    run, table = run_job(make_job(["a", "b"]), tmp_path / "home")
    assert counts(table) == {"succeeded": 2}
    assert cleaned(run) == 1  # of the second batch alone
    first = run.ledger.shards("texts")[0].batches[0]
    assert set(first.file_ids) <= set(provider_server.books()["files"])


@pytest.mark.parametrize("listing", ["fails", "lacks it"])
def test_2_a_batch_that_nobody_knows_is_looked_for_and_harvested_when_it_shows_up(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, listing: str
) -> None:
    run = build(make_job(["a", "b"]), tmp_path / "home")
    unknown = {"call": "retrieve", "status": 404, "times": 9999}
    said: dict[str, Any] = {"status": 503} if listing == "fails" else {"body": {"data": []}}
    provider_server.order(batches=[{"polls": 2}], faults=[unknown, {"call": "list", "times": 9999, **said}])
    assert finish(run).statuses == {"missing": 2}
    age(run, 700)
    assert finish(run).statuses == {"missing": 2}
    ((_, batch),) = troubled(run.ledger.shards("texts"))
    assert batch.state is (State.SUBMITTED if listing == "fails" else State.LOST)
    provider_server.order(forgive=True)
    age(run, 3 * 3600)
    assert finish(run).statuses == {"succeeded": 2}
    assert (provider_server.books()["calls"]["create"], set(provider_server.books()["billed"].values())) == (1, {1})


def test_2_a_batch_that_its_listing_still_shows_is_harvested_from_there(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(faults=[{"call": "retrieve", "status": 404, "times": 9999}])
    run = build(make_job(["a"]), tmp_path / "home")
    advance(run, patience=0)
    with Provider(run.job.profile) as provider:
        provider_server.order(forgive=True)
        (remote,) = provider.batches()
        provider.retrieve(remote.id)
        provider_server.order(faults=[{"call": "retrieve", "status": 404, "times": 9999}])
    assert finish(run).statuses == {"succeeded": 1}
    assert provider_server.books()["calls"]["create"] == 1


def test_2_a_lost_batch_is_sent_again_only_where_a_person_allows_it_and_only_after_ten_minutes(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    limits = {"resubmit_lost": True, "poll_seconds": 0.02}
    run = build(make_job(["a", "b"], limits=limits), tmp_path / "home")
    gone = [{"call": "retrieve", "status": 404, "times": 9999}, {"call": "list", "body": {"data": []}, "times": 9999}]
    provider_server.order(faults=gone)
    assert finish(run).statuses == {"missing": 2}
    assert provider_server.books()["calls"]["create"] == 1
    age(run, 700)
    advance(run)
    assert provider_server.books()["calls"]["create"] == 1
    age(run, 700)
    for _ in range(3):
        advance(run)
    assert provider_server.books()["calls"]["create"] == 2
    provider_server.order(forgive=True)
    assert finish(run).statuses == {"succeeded": 2}


@pytest.mark.parametrize("behaviour", [{"late_files": 2}, {"late_files": 2, "end": "expired", "answer": 2},
                                       {"late_files": 2, "counts": "null"}])  # fmt: skip
def test_3_an_end_that_names_no_file_yet_is_looked_at_again_and_never_acted_on(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, behaviour: dict[str, Any]
) -> None:
    provider_server.order(batches=[behaviour])
    run, table = run_job(make_job(["a", "b", "c"]), tmp_path / "home")
    assert counts(table) == {"succeeded": 3}
    assert set(provider_server.books()["billed"].values()) == {1}
    assert len(provider_server.books()["batches"]) == (2 if behaviour.get("end") else 1)
    del run


def test_3_a_contradiction_that_stays_is_told_and_not_paid_for_again(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(batches=[{"late_files": 10_000}])
    run, table = run_job(make_job(["a"]), tmp_path / "home")
    assert counts(table) == {"missing": 1}
    assert "it is completed with 1 requests worked on, and it names no file" in table["error_message"][0]
    age(run, 86_400)
    assert finish(build(run.job, run.home)).statuses == {"missing": 1}
    assert provider_server.books()["calls"]["create"] == 1


def older_ledger(run: Run, tmp_path: Path) -> None:
    """Restores the ledger as it was before the last steps: `keep_ledger` took the copy."""
    run.ledger.close()
    for path in run.home.glob("ledger.db*"):
        path.unlink()
    shutil.copy(tmp_path / "kept.db", run.home / "ledger.db")


def keep_ledger(run: Run, tmp_path: Path) -> None:
    with run.ledger._engine.begin() as connection:
        connection.exec_driver_sql("PRAGMA user_version")
    run.ledger.close()
    shutil.copy(run.home / "ledger.db", tmp_path / "kept.db")


@pytest.mark.parametrize("sent", ["planned before", "planned since"])
def test_4_a_ledger_that_is_older_than_what_was_sent_sends_nothing_and_the_job_is_recovered(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, sent: str
) -> None:
    home = tmp_path / "home"
    run, _ = run_job(make_job(["a", "b"]), home)
    wanted = make_job(["a", "b", "c", "d"])
    if sent == "planned before":
        build(wanted, home)
    keep_ledger(run, tmp_path)
    if sent == "planned since":
        build(wanted, home)
    run = open_run(wanted, home=str(home))
    provider_server.order(default={"polls": 3})
    advance(run, patience=0)
    before = {path.name: path.read_bytes() for path in run.folder.requests.iterdir()}
    older_ledger(run, tmp_path)
    with pytest.raises(LedgerError, match="overnight recover texts"):
        build(wanted, home)
    assert provider_server.books()["calls"]["create"] == 2
    with Provider(run.job.profile) as provider:
        found = recover(run, provider)
    assert (found.batches, found.files) == (1, 0 if sent == "planned before" else 1)
    assert finish(build(wanted, home)).statuses == {"succeeded": 4}
    assert set(provider_server.books()["billed"].values()) == {1}
    assert {path.name: path.read_bytes() for path in run.folder.requests.iterdir()} == before


@pytest.mark.parametrize("ledger", ["another", "gone"])
def test_4_a_job_of_another_ledger_is_recovered_with_its_answers_and_nothing_is_paid_again(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, ledger: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    wanted = make_job(["a", "[500 once] b", "c"], limits={"max_requests": 2, "poll_seconds": 0.02})
    run, _ = run_job(wanted, home)
    if ledger == "another":
        monkeypatch.setenv("OVERNIGHT_LEDGER_URL", f"sqlite:///{tmp_path}/another.db")
    else:
        run.ledger.close()
        for path in home.glob("ledger.db*"):
            path.unlink()
        _cached.cache_clear()  # as in a new process
    said = "was sent by another ledger" if ledger == "another" else "is gone or empty"
    with pytest.raises(LedgerError, match=f"{said}.*overnight recover texts"):
        build(wanted, home)
    Ledger.of(home, anew=True)
    with Provider(run.job.profile) as provider:
        found = recover(open_run(wanted, home=str(home)), provider)
    assert (found.batches, found.files, found.unsent) == (3, 3, 0)
    billed = provider_server.books()["billed"]
    assert finish(build(wanted, home)).statuses == {"succeeded": 3}
    assert provider_server.books()["billed"] == billed
    assert joined(run)["answer"].to_list() == ["echo: a", "echo: [500 once] b", "echo: c"]


def test_5_another_accounts_listing_proves_nothing(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "the first account's")
    provider_server.order(faults=[{"call": "create", "status": 500, "effect": True}])
    run = build(make_job(["a"], provider=keyed(provider_server)), tmp_path / "home")
    lag = {"call": "list", "body": {"data": []}, "times": 1}
    provider_server.order(faults=[lag])
    advance(run, patience=0)
    monkeypatch.setenv(KEY, "another account's")
    age(run, 1000)
    calls = dict(provider_server.books()["calls"])
    with pytest.raises(OtherAccount, match="1 open batches were sent with another account"):
        advance(run)
    assert provider_server.books()["calls"] == calls
    monkeypatch.setenv(KEY, "the first account's")
    assert finish(run).statuses == {"succeeded": 1}
    assert (provider_server.books()["calls"]["create"], set(provider_server.books()["billed"].values())) == (1, {1})
    assert "account" not in str(vars(run.ledger.shards("texts")[0].batches[0])["account"])


def test_5_files_are_cleaned_with_the_account_that_they_belong_to(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "the first account's")
    run, _ = run_job(make_job(["a"], provider=keyed(provider_server)), tmp_path / "home")
    monkeypatch.setenv(KEY, "another account's")
    with Provider(run.job.profile) as provider:
        assert clean(run, provider) == 0
    assert "delete" not in provider_server.books()["calls"]


def test_5_a_new_key_of_the_same_account_takes_its_batches_over_when_it_is_asked_to(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY, "an old key")
    provider_server.order(default={"polls": 2})
    run = build(make_job(["a"], provider=keyed(provider_server)), tmp_path / "home")
    advance(run, patience=0)
    monkeypatch.setenv(KEY, "a new key")
    with pytest.raises(OtherAccount):
        advance(run)
    with Provider(run.job.profile) as provider:
        assert recover(run, provider).rebound == 1
    assert finish(run).statuses == {"succeeded": 1}
    assert provider_server.books()["calls"]["create"] == 1


@pytest.mark.parametrize(("times", "uploads"), [(3, 1), (5, 2)])
def test_6_a_create_that_does_not_find_its_fresh_file_waits_then_uploads_it_once_more(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, times: int, uploads: int
) -> None:
    said = {"error": {"message": "Invalid file id 'file-abc'", "code": "invalid_file", "type": "invalid_request_error"}}
    provider_server.order(faults=[{"call": "create", "status": 404, "body": said, "times": times}])
    _, table = run_job(make_job(["a"]), tmp_path / "home")
    books = provider_server.books()
    assert (counts(table), books["calls"]["upload"], set(books["billed"].values())) == ({"succeeded": 1}, uploads, {1})


def test_6_two_uploads_that_are_never_found_end_the_job(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    said = {"error": {"message": "No such File object", "code": "not_found"}}
    provider_server.order(faults=[{"call": "create", "status": 404, "body": said, "times": 9999}])
    with pytest.raises(ProviderError, match=r"two uploads of 0001-0000\.jsonl were not found"):
        finish(build(make_job(["a"]), tmp_path / "home"))
    assert (provider_server.books()["calls"]["upload"], provider_server.books()["billed"]) == (2, {})


def test_7_a_server_that_gives_its_ids_again_is_not_taken_for_the_old_one(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    run, _ = run_job(make_job(["a", "b"]), tmp_path / "home")
    provider_server.reset()
    _, table = run_job(make_job(["a", "b", "c"]), tmp_path / "home")
    assert table["answer"].to_list() == ["echo: a", "echo: b", "echo: c"]
    assert [batch["id"] for batch in provider_server.books()["batches"]] == ["batch_000001"]
    assert set(provider_server.books()["billed"].values()) == {1}
    assert len(list(run.folder.responses.glob("*.output.jsonl"))) == 2


def test_7_another_batch_under_an_open_batchs_id_is_not_collected_for_it(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    run = build(make_job(["a"]), tmp_path / "home")
    provider_server.order(default={"polls": 2})
    advance(run, patience=0)
    provider_server.reset()
    rows = tmp_path / "other.jsonl"
    rows.write_text('{"text": "b"}\n')
    other, _ = run_job(make_job(["a"], name="other", dataset={"path": str(rows)}), tmp_path / "elsewhere")
    assert finish(run).statuses == {"missing": 1}
    ((_, batch),) = troubled(run.ledger.shards("texts"))
    assert batch.trouble is not None
    assert joined(other)["answer"].to_list() == ["echo: b"]


def test_8_a_dataset_that_was_replaced_is_not_joined(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    run = build(make_job(["a", "b"]), tmp_path / "home")
    make_job(["b", "a"])
    with pytest.raises(DatasetError, match="row 1 makes another request now"):
        finish(run)
    make_job(["a"])
    with pytest.raises(DatasetError, match="has 1 of the 2 rows that were built"):
        finish(run)
    assert not run.folder.joined.exists()


def test_8_a_dataset_that_is_replaced_while_it_is_joined_is_noticed(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    run = build(make_job(["a", "b"]), tmp_path / "home")
    record = run.ledger.job("texts")
    assert record is not None
    from overnight.store.parquet import read_batches  # noqa: PLC0415 - only here

    rows = BuiltRows(run, record)
    reading = rows.batches(RowMap(read_batches(built_map(run, record))))
    next(reading)
    make_job(["b", "a", "c"])
    with pytest.raises(DatasetError, match="changed while it was joined"):
        list(reading)


def test_8_a_dataset_that_grew_is_joined_as_it_was_built_and_the_new_rows_are_told(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    run = build(make_job(["a", "b"]), tmp_path / "home")
    make_job(["a", "b", "c", "d", "e"])
    tally = finish(run)
    assert (tally.rows, tally.new_rows) == (2, 3)
    assert joined(run)["answer"].to_list() == ["echo: a", "echo: b"]
    assert finish(build(make_job(["a", "b", "c", "d", "e"]), tmp_path / "home")).statuses == {"succeeded": 5}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_11_a_lease_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    with leased(ledger, "job", seconds=0.4) as owner:
        until = time.monotonic() + 1.2
        while time.monotonic() < until:
            assert ledger.acquire("job", "elsewhere:1:x", time.time(), time.time() + 1) == owner
            time.sleep(0.02)
        check_lease(owner)


def test_11_renewal_goes_on_after_errors_of_the_database_and_work_stops_before_the_lease_ends(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    acquire, failures = ledger.acquire, iter([True, True])

    def shaky(*arguments: Any) -> str | None:
        if next(failures, False):
            raise LedgerUnavailable("the database restarts")
        return acquire(*arguments)

    with leased(ledger, "job", seconds=1.0) as owner:
        ledger.acquire = shaky  # type: ignore[method-assign, assignment]
        time.sleep(1.3)
        check_lease(owner)
        failures = iter([True] * 1000)
        time.sleep(1.3)
        with pytest.raises(Exception, match="could not be renewed"):
            check_lease(owner)
        failures = iter([])
        time.sleep(0.6)  # another process may have had it meanwhile: it stays lost
        with pytest.raises(Exception, match="could not be renewed"):
            check_lease(owner)


def test_11_a_process_that_lost_its_lease_sends_nothing(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    run = build(make_job(["a"]), tmp_path / "home")
    with leased(run.ledger, "texts", seconds=0.2) as owner, Provider(run.job.profile) as provider:
        run.ledger.acquire = lambda *_: (_ for _ in ()).throw(LedgerUnavailable("gone"))  # type: ignore[method-assign]
        time.sleep(0.3)
        (shard,) = admit(run, time.time())
        with pytest.raises(Exception, match="could not be renewed"):
            submit(run, provider, shard, owner)
    assert "create" not in provider_server.books()["calls"]


def test_11_four_processes_that_open_a_new_ledger_at_once_all_succeed(tmp_path: Path) -> None:
    assert len(set(opened_by_four(f"sqlite:///{tmp_path}/new.db"))) == 1


@pytest.mark.parametrize("status", [400, 405])
def test_11_files_that_cannot_be_listed_are_no_empty_list(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    refused = {"call": "files", "status": status, "body": {"error": {"message": "between 1 and 100"}}, "times": 9999}
    cut = {"call": "upload", "cut": "before", "effect": True, "times": 3}
    provider_server.order(faults=[refused, cut])
    _, table = run_job(make_job(["a"]), tmp_path / "home")
    assert counts(table) == {"succeeded": 1}
    assert "files cannot be listed" in caplog.text


def test_the_create_call_of_an_attempt_that_was_given_up_meanwhile_is_cancelled(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    """Two processes: the first is stopped in its create call; the second gives the attempt up and creates anew."""
    home = tmp_path / "home"
    provider_server.order(default={"polls": 5})
    run = build(make_job(["a"]), home)

    class Stopped(Provider):
        def create(self, *arguments: Any, **options: Any) -> Any:
            made = super().create(*arguments, **options)
            run.ledger.release("texts", owner)
            age(run, 1000)
            provider_server.order(faults=[{"call": "list", "body": {"data": []}, "times": 2}])
            advance(run, patience=0)
            return made

    with leased(run.ledger, "texts") as owner, Stopped(run.job.profile) as provider:
        (shard,) = admit(run, time.time())
        with pytest.raises(LedgerError, match="no longer creating"):
            submit(run, provider, shard, owner)
    statuses = {batch["id"]: batch["status"] for batch in provider_server.books()["batches"]}
    (kept,) = (batch.batch_id for batch in run.ledger.shards("texts")[0].batches)
    assert {status for batch, status in statuses.items() if batch != kept} <= {"cancelling", "cancelled"}
    assert finish(run, steps=200).statuses == {"succeeded": 1}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_build_moves_what_a_killed_one_planned_and_never_overwrites_what_was_sent(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    run = build(make_job(["a"]), tmp_path / "home")
    (path,) = run.folder.requests.iterdir()
    run.folder.staging.mkdir()
    path.rename(run.folder.staging / path.name)  # as a process leaves it that dies once the ledger is written
    run.folder.rows(None).rename(run.folder.staging / "rows.parquet")
    assert finish(run).statuses == {"succeeded": 1}
    strange = run.folder.requests / "0009-0000.jsonl"
    strange.write_text(json.dumps({"custom_id": "x"}) + "\n")
    with pytest.raises(LedgerError, match=r"has 0009-0000\.jsonl, which the ledger does not know"):
        stage(run)
    assert join(run).statuses == {"succeeded": 1}


def gone(run: Run) -> None:
    run.ledger.close()
    for path in run.home.glob("ledger.db*"):
        path.unlink()
    _cached.cache_clear()
    Ledger.of(run.home, anew=True)


def recovered(run: Run, **words: bool) -> Any:
    with Provider(run.job.profile) as provider:
        return recover(run, provider, **words)


def test_4_what_an_older_ledger_knew_as_sent_is_not_retried_again_after_it_is_recovered(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(default={"polls": 2})
    run = build(make_job(["a", "[500 once] b", "c"]), tmp_path / "home")
    advance(run, patience=0)
    keep_ledger(run, tmp_path)
    assert finish(run).statuses == {"succeeded": 3}
    billed = provider_server.books()["billed"]
    older_ledger(run, tmp_path)
    recovered(run)
    assert finish(run).statuses == {"succeeded": 3}
    assert provider_server.books()["billed"] == billed


@pytest.mark.parametrize("ledger", ["gone", "healthy"])
def test_4_shards_of_the_same_bytes_get_a_batch_each(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, ledger: str
) -> None:
    run, _ = run_job(make_job(["[500 once] b"]), tmp_path / "home")
    if ledger == "gone":
        gone(run)
    assert recovered(run).batches == (2 if ledger == "gone" else 0)
    assert finish(build(run.job, run.home)).statuses == {"succeeded": 1}
    assert set(provider_server.books()["billed"].values()) == {2}


@pytest.mark.parametrize("listing", ["without metadata", "empty"])
def test_4_recover_concludes_nothing_from_a_listing_that_shows_nothing(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, listing: str
) -> None:
    provider_server.order(echo_metadata=listing == "empty")
    run, _ = run_job(make_job(["a", "b"]), tmp_path / "home")
    gone(run)
    if listing == "empty":
        provider_server.order(faults=[{"call": "list", "body": {"data": []}}])
        with pytest.raises(LedgerError, match=r"lists no batch of them.*--unsent"):
            recovered(run)
        with pytest.raises(LedgerError, match="overnight recover texts"):
            build(run.job, run.home)
    assert recovered(run).batches == 1
    assert finish(build(run.job, run.home)).statuses == {"succeeded": 2}
    assert set(provider_server.books()["billed"].values()) == {1}


@pytest.mark.parametrize("reply", ["lost", "none"])
def test_5_a_new_key_after_an_upload_or_a_lost_reply_leaves_a_way_on(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reply: str
) -> None:
    monkeypatch.setenv(KEY, "an old key")
    faults = [{"call": "create", "status": 500}, {"call": "list", "body": {"data": []}}] if reply == "lost" else []
    provider_server.order(faults=faults, processing=0 if faults else 2)
    run = build(make_job(["a"], provider=keyed(provider_server)), tmp_path / "home")
    advance(run, patience=0)
    monkeypatch.setenv(KEY, "a new key")
    if reply == "lost":
        with pytest.raises(OtherAccount, match="--same-account"):
            advance(run)
        assert recovered(run).rebound == 0
        assert recovered(run, same_account=True).rebound == 1
    age(run, 5)
    assert finish(run).statuses == {"succeeded": 1}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_6_refusals_of_a_full_queue_are_none_of_the_file(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    full = {"call": "create", "status": 429, "body": {"error": {"message": "too many batches in progress"}}, "times": 9}
    unfound = {
        "call": "create",
        "status": 404,
        "body": {"error": {"message": "Invalid file id", "code": "invalid_file"}},
    }
    provider_server.order(faults=[full, unfound])
    _, table = run_job(make_job(["a"], limits={"poll_seconds": 0.002}), tmp_path / "home")
    assert counts(table) == {"succeeded": 1}


def test_2_a_batch_is_lost_only_by_a_listing_of_the_same_look(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    unknown = {"call": "retrieve", "status": 404, "times": 9999}
    provider_server.order(batches=[{"polls": 4}], faults=[unknown])
    run = build(make_job(["a"], limits={"resubmit_lost": True, "poll_seconds": 0.02}), tmp_path / "home")
    provider_server.order(faults=[{"call": "list", "body": {"data": []}, "times": 1}])
    advance(run, patience=0)
    age(run, 800)
    for _ in range(3):
        advance(run, patience=0)
        age(run, 800)
    assert run.ledger.shards("texts")[0].batches[0].state is State.SUBMITTED
    assert provider_server.books()["calls"]["create"] == 1


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("trouble", ["lost", "no file named"])
def test_the_sweep_looks_at_lost_batches_and_at_ended_ones_that_could_not_be_collected(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, trouble: str
) -> None:
    from flows.collect import collect_batches  # noqa: PLC0415 - Prefect's import takes seconds

    gone_now = [
        {"call": "retrieve", "status": 404, "times": 9999},
        {"call": "list", "body": {"data": []}, "times": 9999},
    ]
    provider_server.order(**({"faults": gone_now} if trouble == "lost" else {"batches": [{"late_files": 3}]}))
    run = build(make_job(["a"], name="swept-later"), tmp_path / "home")
    advance(run, patience=0)
    for _ in range(2):
        age(run, 700)
        collect_batches(home=str(run.home))
    assert not run.ledger.shards("swept-later")[0].settled
    provider_server.order(forgive=True)
    for _ in range(3):
        age(run, 700)
        collect_batches(home=str(run.home))
    assert joined(run)["status"].to_list() == ["succeeded"]
    assert provider_server.books()["calls"]["create"] == 1


@pytest.mark.usefixtures("prefect_server")
@pytest.mark.parametrize("fault", ["the download is forbidden", "the request file is damaged"])
def test_a_run_ends_and_says_why_where_an_ended_batch_cannot_be_collected(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, fault: str
) -> None:
    from flows.run import run_batch  # noqa: PLC0415 - Prefect's import takes seconds

    wanted = make_job(["a"], name="uncollected")
    run = build(wanted, tmp_path / "home")
    if fault == "the download is forbidden":
        provider_server.order(
            faults=[{"call": "content", "status": 403, "body": {"error": {"message": "no"}}, "times": 9999}]
        )
        said = "HTTP 403"
    else:
        provider_server.order(default={"polls": 3})
        advance(run, patience=0)
        path = next(run.folder.requests.iterdir())
        path.write_bytes(path.read_bytes().replace(b'"a"', b'"b"'))
        said = "not as it was planned"
    with pytest.raises(Exception, match=said):
        run_batch(wanted, home=str(run.home))


def test_a_lost_first_batch_keeps_no_run_waiting_behind_it(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(faults=[{"call": "content", "status": 404, "times": 9999}])
    limits = {"canary_rows": 1, "poll_seconds": 0.02}
    _, table = run_job(make_job(["a", "b", "c"], limits=limits), tmp_path / "home")
    assert table["error_code"].to_list() == ["awaited", "not_sent", "not_sent"]


def test_a_build_after_recover_takes_nothing_from_the_batches_that_were_taken_up(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path
) -> None:
    provider_server.order(default={"polls": 2})
    run = build(make_job(["a", "[500 once] b"]), tmp_path / "home")
    advance(run, patience=0)
    gone(run)
    recovered(run)
    for texts in (["a", "[500 once] b", "c"], ["a", "[500 once] b", "d"]):
        again = build(make_job(texts), tmp_path / "home")
    assert finish(again).statuses == {"succeeded": 3}
    assert sorted(provider_server.books()["billed"].values()) == [1, 1, 2]
