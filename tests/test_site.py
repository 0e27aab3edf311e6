"""The site: its tutorial is walked, its Python runs, it names every call, and it is built without a broken link."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from flows.__main__ import app
from tests.conftest import ROOT
from tests.test_documentation import blocks

TUTORIAL = (ROOT / "docs/tutorial.md").read_text()
PYTHON = (ROOT / "docs/python.md").read_text()


def commands(text: str) -> list[str]:
    """The commands of a page in their order; a file that is written is one, with its lines."""
    found: list[str] = []
    for block in blocks(text, "console"):
        if "<<" in block.splitlines()[0]:
            found.append(block)
        else:
            found += block.splitlines()
    return found


@pytest.mark.usefixtures("prefect_server")
def test_the_tutorial_is_walked_command_by_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OVERNIGHT_HOME", raising=False)
    targets = (ROOT / "Makefile").read_text()
    said: dict[str, str] = {}
    for command in commands(TUTORIAL):
        words = shlex.split(command) if "<<" not in command else ["cat"]
        match words[0]:
            case "source":
                assert words[1] == ".venv/bin/activate"
            case "make":
                assert f"\n{words[1]}:" in targets
            case "cat":
                subprocess.run(["bash", "-c", command], check=True)
            case "overnight":
                assert app(words[1:], result_action="return_value") == 0, command
                said[command] = capsys.readouterr().out
            case _:
                raise AssertionError(f"what is {command!r}?")
    assert any("null_input" in text and "overnight diagnose" in command for command, text in said.items())
    (again,) = [text for text in said.values() if "0 new requests sent" in text]
    assert "7 of 8 rows answered" in again
    joined = pd.read_parquet("data/runs/tickets/joined.parquet")
    assert joined["status"].value_counts().to_dict() == {"succeeded": 7, "failed": 1}
    assert len(pd.read_csv("tickets-answered.csv")) == 8
    assert (tmp_path / "tickets-page/index.html").exists()


@pytest.mark.usefixtures("prefect_server")
def test_the_python_of_the_site_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_HOME", str(tmp_path / "home"))
    (code,) = blocks(PYTHON, "python")
    names: dict[str, Any] = {}
    exec(compile(code, "docs/python.md", "exec"), names)
    assert names["answers"]["status"].to_list() == ["succeeded", "succeeded"]


def test_the_site_names_every_flow() -> None:
    flows = {
        f"flows.{path.stem}.{name}"
        for path in (ROOT / "flows").glob("*.py")
        for name in re.findall(
            r"^@(?:flow|job_flow)\(.*?\)\n(?:@\w+\n)?def (\w+)\(", path.read_text(), re.MULTILINE | re.DOTALL
        )
    }
    assert len(flows) > 8
    assert flows - set(re.findall(r"^::: (\S+)$", PYTHON, re.MULTILINE)) == set()


def test_every_page_is_in_the_navigation() -> None:
    nav = str(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert [path.name for path in (ROOT / "docs").glob("*.md") if f"'{path.name}'" not in nav] == []


def test_the_site_is_built_and_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    settings = (ROOT / "mkdocs.yml").read_text().replace("build/site", "site").replace("paths: [.]", f"paths: [{ROOT}]")
    (tmp_path / "mkdocs.yml").write_text(settings)
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    built = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {page: page.read_text() for page in (tmp_path / "site").rglob("*.html")}
    assert len(pages) >= 11
    asked = [
        found for text in pages.values() for found in re.findall(r'(?:src|<link[^>]*href)="(https?://[^"]+)"', text)
    ]
    assert asked == []
    assert "run_batch_async" in (tmp_path / "site/python/index.html").read_text()
