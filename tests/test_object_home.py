"""A home on an object store: machines that share no disk, and a store that fails. Moto's S3 server and PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from deltalake import DeltaTable

from overnight.builds.staging import stage
from overnight.errors import HomeError, HomeUnavailable, LedgerError
from overnight.job.job import Dataset
from overnight.ledger.database import Ledger
from overnight.ledger.identity import FolderMark, claim_folder, read_mark
from overnight.ledger.leftovers import leftovers
from overnight.ledger.run import open_run, recorded_run
from overnight.providers.provider import Provider
from overnight.reports.look import export, format_of, joined_table, look
from overnight.reports.status import job_rows
from overnight.rows.dataset import open_dataset
from overnight.store import bucket, objects
from overnight.store.home import home_path, shown
from overnight.store.objects import is_kept, is_there, keep, objects_of
from overnight.store.spread import end_clusters, spread
from overnight.view.details import details
from tasks.join import join
from tasks.recover import recover
from tasks.sweep import sweep_leftovers
from tests.conftest import ROOT, MakeJob, ProviderProcess
from tests.object_store import StoreProcess, running_store
from tests.postgresql import Server, needs_postgresql
from tests.spreadable import double, files_of_working_copies
from tests.steps import advance, build, finish, run_job
from tests.test_lakehouse import commit_at_once, commits_of

pytestmark = needs_postgresql
TEXTS: list[str | None] = [*(f"t{n}" for n in range(12)), "t0", "[400]", None]
ONCE: list[str | None] = [*TEXTS, "[500 once]"]
LIMITS = {"max_requests": 5, "poll_seconds": 0.02, "lost_reply_seconds": 0.5}


@pytest.fixture(scope="module")
def store() -> Iterator[StoreProcess]:
    yield from running_store()


@pytest.fixture(scope="module")
def postgresql() -> Iterator[Server]:
    server = Server()
    server.start()
    yield server
    server.stop()
    shutil.rmtree(server.folder)


@pytest.fixture
def home(store: StoreProcess, postgresql: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a home in a new bucket, with a ledger in a new database."""
    for name, value in store.environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("OVERNIGHT_LEDGER_URL", postgresql.database())
    store.order()
    yield f"s3://{store.bucket()}/runs"
    store.order()
    another_machine()


def another_machine() -> None:
    """From here on this process has an empty disk, as on a machine that sees the home for the first time."""
    for one in objects._homes.values():
        shutil.rmtree(one.folder)
    objects._homes.clear()


def on_one_disk(job: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> pd.DataFrame:
    """The joined table of a run at a home and with a ledger on this disk."""
    with monkeypatch.context() as patched:
        patched.delenv("OVERNIGHT_LEDGER_URL")
        return run_job(job, folder)[1]


def same(table: pd.DataFrame) -> pd.DataFrame:
    return table.drop(columns=["batch_id", "attempts"])


def test_each_step_on_a_machine_with_an_empty_disk_ends_as_on_one_disk(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(ONCE, limits=LIMITS)
    build(job, home)
    for _ in range(20):
        another_machine()
        run = recorded_run("texts", home)
        if all(shard.settled for shard in run.ledger.shards("texts")):
            break
        advance(run)
    tally = join(run)
    assert tally.statuses == {"succeeded": 14, "failed": 2}
    assert sorted(provider_server.books()["billed"].values()) == [*[1] * 13, 2]
    another_machine()
    table = joined_table(recorded_run("texts", home))
    clean = on_one_disk(job, tmp_path / "clean", monkeypatch)
    pd.testing.assert_frame_equal(same(pd.read_parquet(table)), same(clean))


def test_a_second_run_elsewhere_sends_nothing_and_new_rows_alone(
    make_job: MakeJob, provider_server: ProviderProcess, home: str
) -> None:
    run_job(make_job(["a", "b"]), home)
    another_machine()
    run_job(make_job(["a", "b"]), home)
    assert sum(provider_server.books()["billed"].values()) == 2
    another_machine()
    run, table = run_job(make_job(["a", "b", "c"]), home)
    assert sum(provider_server.books()["billed"].values()) == 3
    assert table["status"].tolist() == ["succeeded"] * 3
    assert len(run.ledger.shards("texts")) == 2


def test_killed_right_before_and_right_after_each_put_it_pays_once_and_ends_as_if_it_never_was(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(ONCE, limits=LIMITS)
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.crash_driver", str(path), home, "put"]
    driver = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True, timeout=300, check=False)
    assert driver.returncode == 0, driver.stderr[-3000:]
    outcome = json.loads(driver.stdout.splitlines()[-1])
    assert outcome["kills"] >= 12
    assert outcome["statuses"] == {"succeeded": 14, "failed": 2}
    assert sorted(provider_server.books()["billed"].values()) == [*[1] * 13, 2]
    clean = on_one_disk(job, tmp_path / "clean", monkeypatch)
    pd.testing.assert_frame_equal(same(pd.read_parquet(joined_table(recorded_run("texts", home)))), same(clean))


def test_two_machines_at_once_pay_once(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, home: str
) -> None:
    provider_server.order(default={"polls": 3})
    path = tmp_path / "job.json"
    path.write_text(json.dumps(make_job(TEXTS, limits=LIMITS)))
    command = [sys.executable, "-m", "tests.crash_driver", str(path), home, "never"]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, cwd=ROOT, env=os.environ, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    for process in both:
        printed, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors[-3000:]
        assert json.loads(printed.splitlines()[-1])["statuses"] == {"succeeded": 13, "failed": 2}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_dask_workers_without_a_shared_disk_build_and_parse_the_same_while_they_are_killed(
    make_job: MakeJob, provider_server: ProviderProcess, store: StoreProcess, tmp_path: Path, home: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    import distributed  # noqa: PLC0415 - the other tests do without

    job = make_job(ONCE, limits=LIMITS)
    monkeypatch.setenv("OVERNIGHT_RUNNER", "dask")
    try:
        assert list(spread(double, [1, 2], "dask")) == [2, 4]
        workers: dict[str, int] = distributed.default_client().run(os.getpid)  # type: ignore[no-untyped-call]
        puts = {"method": "PUT", "path": "/results/", "do": "kill after"}
        run = build(job, home)
        assert not [one.name for one in objects_of(run.folder.path) if one.name.startswith("fragments/")]
        store.order(*({**puts, "skip": number, "pid": pid} for number, pid in enumerate(workers.values())))
        assert finish(run, together=True).statuses == {"succeeded": 14, "failed": 2}
        seen = distributed.default_client().run(files_of_working_copies)  # type: ignore[no-untyped-call]
        assert [name for names in seen.values() for name in names] == []
        assert set(distributed.default_client().run(os.getpid).values()).isdisjoint(workers.values())  # type: ignore[no-untyped-call]
    finally:
        end_clusters()
    assert sorted(provider_server.books()["billed"].values()) == [*[1] * 13, 2]
    another_machine()
    table = pd.read_parquet(joined_table(recorded_run("texts", home)))
    pd.testing.assert_frame_equal(same(table), same(on_one_disk(job, tmp_path / "clean", monkeypatch)))


@pytest.mark.parametrize("mode", ["merge", "append"])
def test_workers_without_a_shared_disk_commit_the_joined_rows_to_a_table_in_the_store_once(
    make_job: MakeJob, home: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    table = home.removesuffix("runs") + "table"
    job = make_job(TEXTS, output={"table": {"format": "delta", "uri": table, "mode": mode}})
    job["dataset"] |= {"key": ["id"]}
    finish(build(job, home))
    another_machine()
    run = recorded_run("texts", home)
    assert is_there(run.folder.joined)
    commit_at_once(run, home)
    there = DeltaTable(table)
    assert commits_of(there) == ["MERGE" if mode == "merge" else "WRITE"]
    answered = there.to_pandas().sort_values("id")
    assert answered["status"].to_list() == pd.read_parquet(run.folder.joined)["status"].to_list()


def test_a_store_that_is_busy_or_cuts_its_replies_short_is_asked_again(
    make_job: MakeJob, provider_server: ProviderProcess, store: StoreProcess, home: str
) -> None:
    busy = [{"method": method, "skip": skip, "do": "503"} for method in ("PUT", "GET", "HEAD") for skip in (0, 1, 2, 3)]
    busy.append({"method": "PUT", "path": ".ledger.json", "times": 2, "do": "503 after"})
    store.order(*busy, {"method": "GET", "path": "/results/", "times": 2, "do": "cut"})
    build(make_job(TEXTS, limits=LIMITS), home)
    another_machine()
    assert finish(recorded_run("texts", home)).statuses == {"succeeded": 13, "failed": 2}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_nothing_is_paid_while_the_store_is_away(
    make_job: MakeJob, provider_server: ProviderProcess, store: StoreProcess, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket, "_TRIES", 2)
    run = build(make_job(["a"]), home)
    store.order({"method": "PUT", "times": 9999, "do": "503"})
    advance(run)  # the mark cannot be written: the shard waits
    assert not provider_server.books()["billed"]
    assert "does not answer" in str(run.ledger.shards("texts")[0].hold_reason)
    with pytest.raises(HomeUnavailable, match="run the same command again"):
        build(make_job(["a", "b"]), home)
    store.order()
    another_machine()
    assert finish(build(make_job(["a", "b"]), home), 200).statuses == {"succeeded": 2}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_two_writers_of_a_mark_do_not_both_win(make_job: MakeJob, home: str) -> None:
    run = build(make_job(["a"]), home)
    mark = run.folder.mark
    found = objects.read_object(mark)
    assert found is not None
    assert objects.swap_object(mark, b'{"ledger": "x", "folder": "y", "counter": 1}', found[1])
    with pytest.raises(HomeError, match="written by another process meanwhile"):
        objects.swap_object(mark, b"{}", found[1])
    assert read_mark(run.folder) == FolderMark("x", "y", 1)
    claim_folder(run)


def test_what_another_machine_replaced_is_read_anew(make_job: MakeJob, home: str) -> None:
    run, _ = run_job(make_job(["a"]), home)
    (home_object,) = objects._homes.values()
    table = run.folder.joined
    aside = table.with_name("other.parquet")
    pd.DataFrame({"n": [7]}).to_parquet(aside)
    home_object._store.put("runs/../texts/joined.parquet".replace("runs/../", ""), aside)
    assert is_there(table)
    assert pd.read_parquet(table)["n"].tolist() == [7]


def test_results_that_are_gone_are_made_anew_from_responses_elsewhere(
    make_job: MakeJob, provider_server: ProviderProcess, home: str
) -> None:
    run, before = run_job(make_job(TEXTS, limits=LIMITS), home)
    for part in run.folder.results.iterdir():
        objects.forget(part)
    another_machine()
    run, after = run_job(make_job(TEXTS, limits=LIMITS), home)
    pd.testing.assert_frame_equal(after, before)
    assert set(provider_server.books()["billed"].values()) == {1}


def test_a_job_whose_database_is_lost_sends_nothing_until_it_is_recovered(
    make_job: MakeJob, provider_server: ProviderProcess, postgresql: Server, home: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(TEXTS, limits=LIMITS)
    run, before = run_job(job, home)
    keep(
        _written(run.folder.staging / "0001-0000.jsonl", b"{}\n"),
        at=run.folder.requests / f"0009-0000-{'a' * 32}.jsonl",
    )
    another_machine()
    monkeypatch.setenv("OVERNIGHT_LEDGER_URL", postgresql.database())
    with pytest.raises(
        LedgerError, match=r"s3://.*/texts was sent by another ledger than this one .* overnight recover"
    ):
        build(job, home)
    objects.forget(home_path(home) / "texts/requests" / f"0009-0000-{'a' * 32}.jsonl")
    run = open_run(job, home=home)
    with Provider(run.job.profile) as provider:
        told = recover(run, provider)
    assert (told.batches, told.unsent) == (3, 0)
    another_machine()
    run, after = run_job(job, home)
    pd.testing.assert_frame_equal(same(after), same(before))
    assert set(provider_server.books()["billed"].values()) == {1}
    assert sum(one.name.startswith("results-before-") for one in objects_of(run.folder.path)) == 3


def test_a_dataframe_that_was_handed_over_is_there_on_every_machine(
    make_job: MakeJob, provider_server: ProviderProcess, home: str
) -> None:
    job = make_job([]) | {"dataset": {}}
    frame = pd.DataFrame({"text": ["a", "b"]}, index=pd.Index([3, 4], name="k"))
    first = open_run(job, frame, home)
    build(first.job, home)
    another_machine()
    run = recorded_run("texts", home)
    assert run.job.dataset.path == f"{home}/texts/dataset.parquet"
    assert finish(run).statuses == {"succeeded": 2}
    another_machine()
    again = open_run(job, frame, home)
    run, table = run_job(again.job, home)
    assert table.index.tolist() == [3, 4]
    assert set(provider_server.books()["billed"].values()) == {1}


def test_answers_are_looked_at_from_any_machine(make_job: MakeJob, tmp_path: Path, home: str) -> None:
    run_job(make_job(TEXTS, limits=LIMITS), home)
    another_machine()
    folder = home_path(home)
    assert [(row.job, row.state) for row in job_rows(folder)] == [("texts", "done")]
    run = recorded_run("texts", home)
    assert shown(run.folder.joined) == f"{home}/texts/joined.parquet"
    assert len(look(joined_table(run), ["text", "status"]).rows) == 15
    (row,) = details(run, [0])
    assert row["request"]["messages"][0]["content"] == "t0"
    assert len(row["attempts"]) == 1
    out = tmp_path / "out.csv"
    assert export(joined_table(run), out, format_of(out)) == 15
    with pytest.raises(Exception, match="no job 'text' was built in s3://"):
        recorded_run("text", home)


def test_leftovers_are_swept_after_a_week_and_nothing_else(make_job: MakeJob, home: str) -> None:
    run, _ = run_job(make_job(TEXTS, limits=LIMITS), home)
    there = {one.name for one in objects_of(run.folder.path)}
    folder = run.folder
    left = [folder.requests / f"0007-0000-{'b' * 32}.jsonl", folder.rows("0" * 32), folder.fragments / "a.rendered"]
    strange = [folder.responses / "unknown.output.jsonl", folder.results / "0009-0000-000001.parquet"]
    for path in left + strange:
        keep(_written(folder.staging / path.name, b"x"), at=path)
    assert leftovers(run) == []
    later = datetime.now(UTC) + timedelta(days=8)
    assert sorted(leftovers(run, later)) == sorted(left)
    assert sweep_leftovers.fn(run) == 0
    for path in leftovers(run, later):
        objects.forget(path)
    assert {one.name for one in objects_of(folder.path)} == there | {
        f"responses/{strange[0].name}",
        f"results/{strange[1].name}",
    }
    assert stage(run).requests == 13


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_working_copy_is_gone_when_its_process_ends_however_it_ends(home: str, tmp_path: Path) -> None:
    code = (
        "import os, sys; from overnight.store.home import home_path; print(home_path(sys.argv[1]), flush=True); "
        "os.kill(os.getpid(), 9) if sys.argv[2] == 'killed' else None"
    )

    def folder(how: str) -> Path:
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        command = [sys.executable, "-c", code, home, how]
        return Path(
            subprocess.run(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False
            ).stdout.strip()
        )

    assert not folder("ended").exists()
    killed = folder("killed")
    assert killed.exists()
    folder("ended")
    assert not killed.exists()


def test_the_ledger_of_a_shared_home_has_to_be_postgresql(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OVERNIGHT_LEDGER_URL")
    with pytest.raises(LedgerError, match=r"has to be a PostgreSQL database: set OVERNIGHT_LEDGER_URL=postgresql"):
        Ledger.of(home_path(home))
    with pytest.raises(LedgerError, match=r"has to be a PostgreSQL database"):
        job_rows(home_path(home))


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/x", "has to be a folder, or s3://bucket/prefix, gs:// or az://, not ftp://host/x"),
        ("s3:///x", "has to be a folder, or s3://"),
        ("s3://key:secret@bucket/x", "may not hold credentials"),
        ("s3://there-is-no-such-bucket/x", "is the bucket's name right"),
    ],
)
def test_a_home_that_cannot_be_one_is_refused_with_the_mend(home: str, url: str, said: str) -> None:
    with pytest.raises(HomeError, match=said) as caught:
        home_path(url)
    assert "secret" not in str(caught.value)


@pytest.mark.usefixtures("prefect_server")
def test_what_the_store_asks_for_may_stand_in_a_block_and_in_no_text(
    make_job: MakeJob, home: str, monkeypatch: pytest.MonkeyPatch, store: StoreProcess
) -> None:
    from prefect.blocks.system import Secret  # noqa: PLC0415 - the other tests do without

    for name in store.environment:
        monkeypatch.delenv(name)
    given = {"endpoint": store.address, "allow_http": "true", "region": "us-east-1", "access_key_id": "a-key",
             "secret_access_key": "a secret of tests"}  # fmt: skip
    monkeypatch.setenv("OVERNIGHT_HOME_BLOCK", "runs-home")
    with pytest.raises(HomeError, match="no Secret block named 'runs-home'"):
        home_path(home)
    Secret(value=["a secret of tests"]).save("runs-home")
    with pytest.raises(HomeError, match="has to hold a JSON object of texts") as caught:
        home_path(home)
    assert "a secret" not in str(caught.value)
    Secret(value=given).save("runs-home", overwrite=True)
    assert run_job(make_job(["a"]), home)[1]["status"].tolist() == ["succeeded"]


@pytest.mark.usefixtures("prefect_server")
def test_a_work_pool_whose_disk_is_emptied_between_runs_takes_a_job_to_its_end(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, home: str
) -> None:
    from prefect import settings  # noqa: PLC0415 - the other tests do without
    from prefect.client.orchestration import get_client  # noqa: PLC0415
    from prefect.client.schemas.actions import WorkPoolCreate  # noqa: PLC0415
    from prefect.deployments import run_deployment  # noqa: PLC0415
    from prefect.types.entrypoint import EntrypointType  # noqa: PLC0415

    from flows.collect import collect_batches  # noqa: PLC0415
    from flows.submit import submit_batch  # noqa: PLC0415

    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name="emptied", type="process"))
        for flow in (submit_batch, collect_batches):
            deployment: Any = flow.to_deployment(
                "emptied", work_pool_name="emptied", entrypoint_type=EntrypointType.MODULE_PATH,
                job_variables={"working_dir": str(ROOT)},
            )  # fmt: skip
            deployment.apply()
        disk, left = tmp_path / "disk", list[str]()

        def run_once(name: str, **parameters: Any) -> None:
            """A run by a worker that finds an empty disk, which is emptied again after it."""
            disk.mkdir()
            made: Any = run_deployment(f"{name}/emptied", parameters=parameters, timeout=0)
            environment = os.environ | {
                "OVERNIGHT_HOME": home, "TMPDIR": str(disk), "PREFECT_HOME": str(disk / "prefect"),
                "PREFECT_API_URL": str(settings.PREFECT_API_URL.value()),
            }  # fmt: skip
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "emptied", "--run-once"]
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False
            )
            state = client.read_flow_run(made.id).state
            assert state is not None
            assert state.is_completed(), f"{state}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
            left.extend(path.name for path in disk.glob("overnight-home-*"))
            shutil.rmtree(disk)

        run_once("submit_batch", job=make_job(TEXTS, limits=LIMITS))
        for _ in range(3):
            run_once("collect_batches")
            if is_kept(home_path(home) / "texts/report.md"):
                break
    assert left == []
    table = pd.read_parquet(joined_table(recorded_run("texts", home)))
    assert table["status"].value_counts().to_dict() == {"succeeded": 13, "failed": 2}
    assert set(provider_server.books()["billed"].values()) == {1}


def test_datasets_are_read_from_the_store_with_the_same_package(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = home_path(home) / "input"
    for number in range(2):
        part = folder / f"lang=e{number}/part.csv"
        keep(_written(part, f"n\n{number}\n".encode()))
    rows = open_dataset(Dataset(path=f"{home}/input/"))
    assert [row for batch in rows.batches() for row in batch.to_pylist()] == [
        {"n": 0, "lang": "e0"},
        {"n": 1, "lang": "e1"},
    ]
    assert rows.fingerprint == open_dataset(Dataset(path=f"{home}/input/")).fingerprint
    keep(_written(folder / "lang=e1/part.csv", b"n\n2\n"))
    assert rows.fingerprint != open_dataset(Dataset(path=f"{home}/input/")).fingerprint


def test_a_package_that_is_not_installed_is_named(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(HomeError, match=r"pip install 'overnight\[objects,postgres\]'"):
        home_path(home + "/other")
