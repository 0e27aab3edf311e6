"""The documents say what is so: their jobs read, their code runs, their links and commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
import yaml

from flows.__main__ import app
from overnight.job.job import Job
from overnight.job.jobfile import load_job
from overnight.job.profiles import profile_names
from overnight.rows.tables import added_fields
from tests.conftest import ROOT, MakeJob

DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = DOCUMENTS[0].read_text()


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)\)", path.read_text())
    assert [link for link in links if not link.startswith("http") and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_job_files_in_the_documents_read(path: Path) -> None:
    for block in blocks(path.read_text(), "yaml"):
        load_job(yaml.safe_load(block))


def test_every_command_of_the_readme_exists() -> None:
    named = set(re.findall(r"`overnight (\w+)", README))
    assert named == {name for name in app if not name.startswith("-")}


def test_every_test_that_the_readme_names_exists() -> None:
    tests = "".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in re.findall(r"`(test_\w+)`", README) if f"def {name}(" not in tests] == []


def test_every_profile_is_named_in_the_readme() -> None:
    assert [name for name in profile_names() if f"`{name}`" not in README and name not in ("local", "deepseek")] == []


def test_every_setting_is_in_the_documents() -> None:
    text = (ROOT / "docs/jobs.md").read_text()
    groups = {name: Job.model_fields[name].annotation for name in ("dataset", "provider", "limits", "output", "report")}
    names = [*Job.model_fields, *(field for group in groups.values() for field in getattr(group, "model_fields", {}))]
    missing = [name for name in names if not re.search(rf"[`. ]{name}\b", text)]
    assert [name for name in missing if name not in groups] == []


def test_every_added_column_is_in_the_documents() -> None:
    from overnight.job.answer import Answer  # noqa: PLC0415 - only here

    text = (ROOT / "docs/results.md").read_text()
    assert [field.name for field in added_fields(Answer.text()) if f"`{field.name}`" not in text] == []


def test_the_python_of_the_readme_runs(
    make_job: MakeJob,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    prefect_server: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path / "home"))
    (code,) = blocks(README, "python")
    exec(compile(code, "README.md", "exec"), {})
    assert "Broke at once." in capsys.readouterr().out
    joined = pd.read_parquet(tmp_path / "home/notebook/joined.parquet")
    assert joined["status"].to_list() == ["succeeded", "succeeded"]


def test_every_test_that_the_readme_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "README.md").read_text()))
    written = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))
    assert [name for name in sorted(named) if f"def {name}(" not in written] == []
    assert len(named) > 8
