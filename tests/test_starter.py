"""The starter job: whatever a dataset's columns are named, it is a job that can be planned."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.errors import JobError
from overnight.job.jobfile import load_job
from overnight.job.starter import KINDS, Asked, likely_key, likely_text, starter_job
from overnight.ledger.run import open_run
from overnight.reports.dry_run import plan_job
from overnight.reports.starting import write_starter
from tests.test_command_line import overnight

ROWS = [{"review_id": 1, "stars": 3, "review": "Works well."}, {"review_id": 2, "stars": 3, "review": "Broke at once."}]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("profile", ["openai", "local", "groq"])
def test_every_task_has_a_starter_that_is_a_valid_job(kind: str, profile: str) -> None:
    text = starter_job("reviews.csv", "reviews", ROWS, Asked(kind, profile=profile))
    job = load_job(yaml.safe_load(text))
    assert (job.task.kind, job.dataset.key, job.provider.profile) == (kind, ("review_id",), profile)
    assert "{{ review }}" in text


def test_the_text_and_the_key_are_found_among_the_columns() -> None:
    assert likely_text(ROWS, list(ROWS[0])) == "review"
    assert likely_key(ROWS, list(ROWS[0])) == "review_id"
    assert likely_key([{"id": 1}, {"id": 1}], ["id"]) is None
    assert likely_key([{"id": None}], ["id"]) is None


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (Asked("clasify"), "--task clasify; did you mean 'classify'"),
        (Asked(label_name="two words"), "--label-name 'two words': write one word"),
        (Asked(column="reviw"), "no column 'reviw'; did you mean 'review'"),
    ],
)
def test_a_choice_that_is_not_there_is_named(asked: Asked, message: str) -> None:
    with pytest.raises(JobError, match=message):
        starter_job("reviews.csv", "reviews", ROWS, asked)


names = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=12).filter(str.strip)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(columns=st.lists(names, min_size=1, max_size=3, unique=True))
def test_a_starter_for_any_columns_can_be_planned(tmp_path_factory: pytest.TempPathFactory, columns: list[str]) -> None:
    folder = tmp_path_factory.mktemp("starter")
    with (folder / "a.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([columns, [f"cell {n}" for n in range(len(columns))]])
    file = write_starter(str(folder / "a.csv"), Asked(profile="local"), folder / "job.yaml")
    assert plan_job(open_run(file, home=str(folder / "home"))).requests == 1


def test_init_writes_a_file_once_and_says_what_comes_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my reviews.csv").write_text("id,text\n1,good\n")
    assert overnight("init", "my reviews.csv", "--labels", "good", "--labels", "bad", "--model", "m") == 0
    assert "overnight plan my-reviews.yaml" in capsys.readouterr().out
    written: dict[str, Any] = yaml.safe_load((tmp_path / "my-reviews.yaml").read_text())
    assert (written["task"]["labels"], written["model"]) == (["good", "bad"], "m")
    assert overnight("init", "my reviews.csv") == 1
    assert "my-reviews.yaml is there already" in capsys.readouterr().err
    assert overnight("init", "my reviews.csv", "--provider", "opnai", "--output", "x.yaml") == 1
    assert "did you mean 'openai'" in capsys.readouterr().err
    assert not (tmp_path / "x.yaml").exists()
