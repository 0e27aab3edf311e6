"""The joined rows in a table: committed once, whatever is killed, repeated, or done at the same time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.table import Table as IcebergTable
from pyiceberg.utils.config import Config

from overnight.answers.lakehouse import check_table, commit_joined
from overnight.errors import JobError, Terminal
from overnight.job.job import Job
from overnight.job.jobfile import load_job
from overnight.ledger.run import Run
from tests.conftest import ROOT, MakeJob
from tests.steps import run_job


def keyed(make_job: MakeJob, texts: list[str | None], table: Path | str, mode: str = "merge") -> dict[str, Any]:
    """A job whose rows have a key, with a table."""
    job = make_job(texts)
    job["dataset"] |= {"key": ["id"]}
    return job | {"output": {"table": {"format": "delta", "uri": str(table), "mode": mode}}}


def committed(run: Run, *, awaited: bool = False) -> int | None:
    record = run.ledger.job(run.job.name)
    assert record is not None
    return commit_joined(run, record, awaited=awaited)


def rows_of(table: Path) -> pd.DataFrame:
    return DeltaTable(table).to_pandas().sort_values("id").reset_index(drop=True)


def commits_of(table: DeltaTable) -> list[str]:
    """The operations that wrote rows; that a table is made may be committed by more than one."""
    return [one["operation"] for one in table.history() if one["operation"] != "CREATE TABLE"]


ICEBERG = "lake.reviews.answers"


@pytest.fixture
def catalog(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqlCatalog:
    """A catalog in a database, as PyIceberg finds it by its variables."""
    (tmp_path / "lake").mkdir()
    about = {"uri": f"sqlite:///{tmp_path}/lake/catalog.db", "warehouse": f"file://{tmp_path}/lake", "type": "sql"}
    for name, value in about.items():
        monkeypatch.setenv(f"PYICEBERG_CATALOG__LAKE__{name.upper()}", value)
    read_variables(monkeypatch)
    return SqlCatalog("lake", **about)


def read_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyIceberg reads them once in a process, when it is imported."""
    monkeypatch.setattr("pyiceberg.catalog._ENV_CONFIG", Config())


def in_iceberg(make_job: MakeJob, texts: list[str | None], **fields: Any) -> dict[str, Any]:
    """A job whose rows are appended to a table of that catalog."""
    return make_job(texts, output={"table": {"format": "iceberg", "uri": ICEBERG, "mode": "append"}}, **fields)


def answers_of(catalog: SqlCatalog) -> list[str]:
    rows = catalog.load_table("reviews.answers").scan().to_arrow()
    return sorted(str(one) for one in rows["answer"].to_pylist())


def test_each_build_is_appended_to_an_iceberg_table_once(
    make_job: MakeJob, tmp_path: Path, catalog: SqlCatalog
) -> None:
    run, joined = run_job(in_iceberg(make_job, ["a", "b", "[400]", None]), tmp_path / "home")
    assert committed(run, awaited=True) is None
    assert len({committed(run) for _ in range(3)}) == 1
    table = catalog.load_table("reviews.answers")
    assert table.scan().to_arrow().column_names == joined.columns.to_list()
    assert answers_of(catalog) == ["None", "None", "echo: a", "echo: b"]
    other, _ = run_job(in_iceberg(make_job, ["a", "c"]), tmp_path / "home")
    second = committed(other)
    run, _ = run_job(in_iceberg(make_job, ["a", "b", "[400]", None]), tmp_path / "another home")
    expire_snapshots(table)
    assert committed(run) == second, (
        "a build is known again, by another ledger, after another build, its snapshot expired"
    )
    assert answers_of(catalog) == ["None", "None", "echo: a", "echo: a", "echo: b", "echo: c"]


def expire_snapshots(table: IcebergTable) -> None:
    table.refresh()
    old = [one.snapshot_id for one in table.snapshots()][:-1]
    table.maintenance.expire_snapshots().by_ids(old).commit()


def test_a_column_that_came_since_is_added_to_an_iceberg_table(
    make_job: MakeJob, tmp_path: Path, catalog: SqlCatalog
) -> None:
    committed(run_job(in_iceberg(make_job, ["a"]), tmp_path / "home")[0])
    job = in_iceberg(make_job, ["b"])
    Path(job["dataset"]["path"]).write_text('{"id": 7, "text": "b", "lang": "en"}\n')
    committed(run_job(job, tmp_path / "home")[0])
    rows = catalog.load_table("reviews.answers").scan().to_arrow().to_pylist()
    assert sorted((one["answer"], one["lang"]) for one in rows) == [("echo: a", None), ("echo: b", "en")]


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_to_an_iceberg_table_that_is_killed_is_made_once(
    make_job: MakeJob, tmp_path: Path, catalog: SqlCatalog, moment: str
) -> None:
    run, _ = run_job(in_iceberg(make_job, ["a", "b"]), tmp_path / "home")
    child = commit_process(run, moment)
    child.communicate("x", timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert catalog.table_exists("reviews.answers") == (moment == "after")
    committed(run)
    assert answers_of(catalog) == ["echo: a", "echo: b"]


@pytest.mark.parametrize("there", [True, False], ids=["a table", "no table"])
def test_workers_that_commit_to_an_iceberg_table_at_the_same_moment_commit_once(
    make_job: MakeJob, tmp_path: Path, catalog: SqlCatalog, there: bool
) -> None:
    if there:
        committed(run_job(in_iceberg(make_job, ["z"]), tmp_path / "before")[0])
    run, _ = run_job(in_iceberg(make_job, ["a", "b"]), tmp_path / "home")
    commit_at_once(run)
    assert answers_of(catalog) == ["echo: a", "echo: b", *(["echo: z"] if there else [])]
    assert len(catalog.load_table("reviews.answers").snapshots()) == 1 + there


def commit_at_once(run: Run, home: str | None = None) -> None:
    """Four processes commit when they are told to, all of them."""
    workers = [commit_process(run, "never", home) for _ in range(4)]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("x")
        worker.stdin.flush()
    outcomes = [worker.communicate(timeout=60) for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * 4, outcomes


def test_what_an_iceberg_table_cannot_hold_or_has_otherwise_is_told_before_anything_is_spent(
    make_job: MakeJob, catalog: SqlCatalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = load_job(in_iceberg(make_job, ["a"]))
    with pytest.raises(JobError, match=r"Iceberg has no type for the column 'odd' \(duration"):
        check_table(job, pa.schema([("fine", pa.string()), ("odd", pa.duration("s"))]))
    check_table(job, pa.schema([("small", pa.uint8()), ("when", pa.timestamp("ns")), ("list", pa.list_(pa.int64()))]))
    catalog.create_namespace("reviews")
    catalog.create_table("reviews.answers", pa.schema([("status", pa.int64()), ("list", pa.list_(pa.int64()))]))
    with pytest.raises(JobError, match=r"'status' is int64 there, and (large_)?string here"):
        check_table(job, pa.schema([("status", pa.string()), ("list", pa.list_(pa.int64()))]))
    monkeypatch.setenv("PYICEBERG_CATALOG__LAKE__URI", "sqlite:////nowhere/catalog.db")
    read_variables(monkeypatch)
    with pytest.raises(JobError, match=r"output\.table: lake\.reviews\.answers cannot be opened: .*unable to open"):
        check_table(job, pa.schema([("status", pa.string())]))


@pytest.mark.parametrize("mode", ["merge", "append"])
def test_the_joined_rows_are_committed_once(make_job: MakeJob, tmp_path: Path, mode: str) -> None:
    job = keyed(make_job, ["a", "b", "[400]", None], tmp_path / "table", mode)
    run, joined = run_job(job, tmp_path / "home")
    assert [committed(run) for _ in range(3)] == [1, 1, 1]
    there = rows_of(tmp_path / "table")
    pd.testing.assert_frame_equal(there[["id", "answer", "status"]], joined[["id", "answer", "status"]])
    assert there.columns.to_list() == joined.columns.to_list()


def test_a_merge_replaces_rows_of_the_same_key_and_adds_others(make_job: MakeJob, tmp_path: Path) -> None:
    run, _ = run_job(keyed(make_job, ["a", "b"], tmp_path / "table"), tmp_path / "home")
    committed(run)
    run, _ = run_job(keyed(make_job, ["a", "other", "c"], tmp_path / "table"), tmp_path / "home")
    assert committed(run) == 2
    assert rows_of(tmp_path / "table")["answer"].to_list() == ["echo: a", "echo: other", "echo: c"]
    run, _ = run_job(keyed(make_job, ["a", "b"], tmp_path / "table"), tmp_path / "home")
    assert committed(run) == 3, "rows that came back are committed as others are"
    assert rows_of(tmp_path / "table")["answer"].to_list() == ["echo: a", "echo: b", "echo: c"]


def test_an_append_waits_until_each_row_has_its_verdict_and_takes_each_build_once(
    make_job: MakeJob, tmp_path: Path
) -> None:
    run, _ = run_job(keyed(make_job, ["a", "b"], tmp_path / "table", "append"), tmp_path / "home")
    assert committed(run, awaited=True) is None
    assert committed(run) == 1
    run, _ = run_job(keyed(make_job, ["a", "c"], tmp_path / "table", "append"), tmp_path / "home")
    assert [committed(run), committed(run)] == [2, 2]
    run, _ = run_job(keyed(make_job, ["a", "b"], tmp_path / "table", "append"), tmp_path / "another home")
    assert committed(run) == 2, "a build that is there is known again, also after another one and by another ledger"
    assert sorted(rows_of(tmp_path / "table")["answer"]) == ["echo: a", "echo: a", "echo: b", "echo: c"]


_COMMIT = """
import os, signal, sys
from overnight.answers import delta, iceberg, lakehouse
from overnight.ledger.run import recorded_run

moment, job, home = sys.argv[1:]
run = recorded_run(job, home)
library = {"delta": delta, "iceberg": iceberg}[run.job.output.table.format]
commit = library.commit

def killed(*given):
    if moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    version = commit(*given)
    if moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return version

library.commit = killed
sys.stdin.read(1)
print(lakehouse.commit_joined(run, run.ledger.job(job), awaited=False))
"""


def commit_process(run: Run, moment: str, home: str | None = None) -> subprocess.Popen[str]:
    """A process that commits when it is told to, and is killed right before or after, or never."""
    command = [sys.executable, "-c", _COMMIT, moment, run.job.name, home or str(run.home)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=ROOT, env=os.environ, stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("mode", ["merge", "append"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_commit_that_is_killed_is_made_once(make_job: MakeJob, tmp_path: Path, mode: str, moment: str) -> None:
    run, _ = run_job(keyed(make_job, ["a", "b"], tmp_path / "table", mode), tmp_path / "home")
    child = commit_process(run, moment)
    child.communicate("x", timeout=60)
    assert child.returncode == -signal.SIGKILL
    assert (tmp_path / "table").exists() == (moment == "after")
    assert committed(run) == 1
    assert rows_of(tmp_path / "table")["answer"].to_list() == ["echo: a", "echo: b"]


@pytest.mark.parametrize("mode", ["merge", "append"])
@pytest.mark.parametrize("there", [True, False], ids=["a table", "no table"])
def test_two_workers_that_commit_at_the_same_moment_commit_once(
    make_job: MakeJob, tmp_path: Path, mode: str, there: bool
) -> None:
    if there:
        run, _ = run_job(keyed(make_job, ["z"], tmp_path / "table", mode), tmp_path / "before")
        committed(run)
    run, _ = run_job(keyed(make_job, ["a", "b"], tmp_path / "table", mode), tmp_path / "home")
    commit_at_once(run)
    answers = rows_of(tmp_path / "table")["answer"].to_list()
    old = ["echo: z"] if there and mode == "append" else []
    assert sorted(answers) == ["echo: a", "echo: b", *old]
    assert len(commits_of(DeltaTable(tmp_path / "table"))) == 1 + there


def job_with(table: Path, **fields: Any) -> Job:
    return load_job({
        "name": "texts", "task": {"kind": "generate", "prompt": "{{ text }}"}, "model": "m",
        "dataset": {"path": "x.csv", "key": ["id"]}, "provider": {"profile": "openai"},
        "output": {"table": {"format": "delta", "uri": str(table)}},
    } | fields)  # fmt: skip


def test_numbers_and_times_that_delta_has_no_type_for_are_widened(tmp_path: Path, make_job: MakeJob) -> None:
    job = keyed(make_job, ["a", "b"], tmp_path / "table")
    rows = pd.read_json(job["dataset"]["path"], lines=True)
    rows["small"] = pd.array([200, 255], dtype="uint8")
    rows["large"] = pd.array([2**63 + 5, 2**64 - 1], dtype="uint64")
    rows["when"] = pd.to_datetime(["2026-01-02 03:04:05", "2026-01-03 00:00:00"])
    rows.to_parquet(path := tmp_path / "texts.parquet")
    job["dataset"] |= {"path": str(path)}
    run, _ = run_job(job, tmp_path / "home")
    assert committed(run) == 1
    there = rows_of(tmp_path / "table")
    assert there["small"].to_list() == [200, 255]
    assert [int(one) for one in there["large"]] == [2**63 + 5, 2**64 - 1]
    assert there["when"].iloc[0].to_pydatetime() == datetime(2026, 1, 2, 3, 4, 5)  # noqa: DTZ001 - as the dataset has it


@pytest.mark.parametrize("kind", [pa.float16(), pa.time64("us"), pa.duration("s")])
def test_a_column_that_delta_cannot_hold_is_told_before_anything_is_spent(tmp_path: Path, kind: pa.DataType) -> None:
    with pytest.raises(JobError, match=r"Delta has no type for the column 'odd' .* cast it in a dataset\.sql"):
        check_table(job_with(tmp_path / "table"), pa.schema([("odd", kind)]))
    assert not (tmp_path / "table").exists()


def test_a_table_with_a_column_of_another_type_is_told_before_anything_is_spent(tmp_path: Path) -> None:
    write_deltalake(tmp_path / "table", pa.table({"status": [1], "answer": ["x"]}))
    with pytest.raises(JobError, match="'status' is int64 there, and string here"):
        check_table(job_with(tmp_path / "table"), pa.schema([("status", pa.string()), ("answer", pa.string())]))


def test_a_table_that_cannot_be_written_fails_the_step_and_keeps_the_joined_file(
    make_job: MakeJob, tmp_path: Path
) -> None:
    run, _ = run_job(keyed(make_job, ["a"], tmp_path / "table"), tmp_path / "home")
    (tmp_path / "table").write_text("a file where the table's folder should be")
    with pytest.raises(
        Terminal, match=r"did not take the rows of texts: .* is whole, and the next run tries again"
    ) as told:
        committed(run)
    assert "\n" not in str(told.value)
    assert "\x1b" not in str(told.value)
    assert run.folder.joined.exists()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dataset": {"path": "x.csv"}}, "mode merge needs a dataset.key"),
        ({"output": {"table": {"format": "iceberg", "uri": "a.b.c"}}}, "an iceberg table takes mode: append"),
        ({"output": {"table": {"format": "iceberg", "uri": "a.b", "mode": "append"}}}, "catalog.namespace.table"),
        ({"model": None, "models": ["a", "b"]}, "without models and variants"),
    ],
)
def test_a_table_that_cannot_be_meant_is_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        job_with(tmp_path / "table", **fields)


def test_a_run_commits_and_a_run_with_nothing_new_commits_nothing(
    make_job: MakeJob, tmp_path: Path, prefect_server: None
) -> None:
    from flows.run import run_batch  # noqa: PLC0415 - most tests do without Prefect's import

    job = keyed(make_job, ["a", "b"], tmp_path / "table")
    for _ in range(2):
        run_batch(job, home=str(tmp_path / "home"))
    assert commits_of(DeltaTable(tmp_path / "table")) == ["MERGE"]
    assert rows_of(tmp_path / "table")["answer"].to_list() == ["echo: a", "echo: b"]
