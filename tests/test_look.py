"""A look at the joined table: show, export, status, the overview after a run, and where two jobs differ."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pyarrow.parquet as pq
import pytest

from overnight.errors import JobError
from overnight.ledger.run import Run, recorded_run
from overnight.reports.look import differences, export, format_of, joined_table, look, overview, usual_columns
from overnight.reports.status import job_rows
from tests.conftest import MakeJob
from tests.steps import run_job
from tests.test_command_line import overnight

TEXTS: list[str | None] = ["good", "bad", "good", "[400]", None]


@pytest.fixture
def ran(make_job: MakeJob, tmp_path: Path) -> Run:
    run_job(make_job(TEXTS), tmp_path / "home")
    return recorded_run("texts", tmp_path / "home")


def test_the_rows_that_are_asked_for_are_shown_with_what_was_asked(ran: Run) -> None:
    seen = look(joined_table(ran), usual_columns(ran), where="status <> 'succeeded'", limit=1)
    assert (seen.found, seen.total, len(seen.rows)) == (2, 5, 1)
    assert {"text", "status", "answer", "error_code"} <= set(seen.columns)
    assert not {"custom_id", "batch_id"} & set(seen.columns)


@pytest.mark.parametrize(
    ("columns", "where", "message"),
    [
        (["txt"], None, "no column 'txt'; did you mean 'text'"),
        ([], "nope = 1", "the condition cannot be read: .*nope.*Candidate"),
        ([], "text =", "the condition cannot be read: .*syntax error"),
    ],
)
def test_a_question_that_cannot_be_read_says_why(ran: Run, columns: list[str], where: str | None, message: str) -> None:
    with pytest.raises(JobError, match=message):
        look(joined_table(ran), columns, where=where)


def test_the_overview_counts_answers_that_repeat_and_errors(ran: Run) -> None:
    seen = overview(joined_table(ran))
    assert [tuple(one) for one in seen.statuses] == [("succeeded", 3), ("failed", 2)]
    assert seen.answers == []  # the answers are few: nothing repeats often enough to be a distribution
    assert {(code, rows) for code, rows, _ in seen.errors} == {("null_input", 1), ("invalid_request", 1)}


def test_answers_that_are_labels_are_a_distribution(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"status": ["succeeded"] * 10, "answer": ["a"] * 7 + ["b"] * 3, "error_code": None, "error_message": None}
    )
    table.to_parquet(tmp_path / "joined.parquet")
    assert [tuple(one) for one in overview(tmp_path / "joined.parquet").answers] == [("a", 7), ("b", 3)]


READERS: dict[str, Callable[[Path], pd.DataFrame]] = {
    "a.csv": pd.read_csv,
    "a.jsonl": lambda path: pd.read_json(path, lines=True),
    "a.parquet": pd.read_parquet,
    "a.duckdb": lambda path: duckdb.connect(str(path), read_only=True).sql("from answers").df(),
}


@pytest.mark.parametrize("name", READERS)
def test_an_export_has_the_rows_in_their_order(ran: Run, tmp_path: Path, name: str) -> None:
    target, table = tmp_path / name, joined_table(ran)
    assert export(table, target, format_of(target)) == 5
    written, joined = READERS[name](target), pd.read_parquet(table)
    assert list(written.columns) == list(joined.columns)
    assert written["text"].fillna("").tolist() == joined["text"].fillna("").tolist()
    assert written["answer"].fillna("").tolist() == joined["answer"].fillna("").tolist()
    assert [path.name for path in tmp_path.glob(f"{name}*")] == [name]


def test_an_export_of_some_rows_and_one_without_a_format(ran: Run, tmp_path: Path) -> None:
    assert export(joined_table(ran), tmp_path / "b.parquet", "parquet", where="status = 'succeeded'") == 3
    assert pq.read_table(tmp_path / "b.parquet").num_rows == 3
    with pytest.raises(JobError, match=r"x\.foo: name the format with --to: csv, jsonl, parquet or duckdb"):
        format_of(tmp_path / "x.foo")


def test_two_jobs_over_the_same_rows_are_compared_where_they_differ(
    ran: Run, make_job: MakeJob, tmp_path: Path
) -> None:
    task = {"kind": "generate", "prompt": "{{ text }}!"}
    run_job(make_job(TEXTS, name="other", task=task), tmp_path / "home")
    seen = differences(ran, recorded_run("other", tmp_path / "home"))
    assert seen.columns[-2:] == ["answer@texts", "answer@other"]
    assert (seen.found, seen.total) == (3, 5)
    assert all(mine != theirs for *_, mine, theirs in seen.rows)
    assert differences(ran, ran).found == 0


def test_jobs_are_listed_with_their_state(ran: Run, make_job: MakeJob, tmp_path: Path) -> None:
    (row,) = job_rows(ran.home)
    assert (row.job, row.state, row.rows, row.answered, row.batches) == ("texts", "done", 5, row.requests, 0)
    with pytest.raises(JobError, match=r"no job 'text' was built in .*did you mean 'texts'"):
        job_rows(ran.home, "text")
    assert job_rows(tmp_path / "elsewhere") == []


def test_the_commands_print_json_and_replace_no_file(
    ran: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = ("--home", ran.home)
    assert overnight("show", "texts", "--status", "failed", "--json", *home) == 0
    shown: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (shown["found"], shown["total"]) == (2, 5)
    assert overnight("status", "--json", *home) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["jobs"][0]["state"] == "done"
    (tmp_path / "out.csv").write_text("mine")
    assert overnight("export", "texts", tmp_path / "out.csv", *home) == 1
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "out.csv").read_text() == "mine"
    assert overnight("export", "texts", tmp_path / "out.csv", "--overwrite", *home) == 0
    assert "wrote 5 rows" in capsys.readouterr().out
    assert overnight("show", "nobody", *home) == 1
    assert "no job 'nobody' was built" in capsys.readouterr().err
