"""The first second: what a command imports before it says something."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, MakeJob

_PROGRAM = """
import sys
from flows.__main__ import app
try:
    code = app(sys.argv[2:], result_action="return_value")
except SystemExit as ended:
    code = ended.code
found = [name for name in sys.argv[1].split(",") if name in sys.modules]
print("code", code or 0, "imported", *found)
"""
PREFECT = "prefect,pandas,openai"
HEAVY = f"{PREFECT},pydantic,pyarrow,sqlalchemy,duckdb,numpy"


def last_line(heavy: str, *arguments: str | Path, **environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-c", _PROGRAM, heavy, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, env=kept | environment, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]], ids=" ".join)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    assert last_line(HEAVY, *arguments) == "code 0 imported"


def test_a_wrong_job_file_is_told_without_arrow_or_a_ledger(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("name: x\nprompt: {{ review }}\n")
    assert last_line(f"{PREFECT},pyarrow,sqlalchemy,duckdb", "run", tmp_path / "job.yaml") == "code 1 imported"


def test_plan_and_status_need_no_prefect_where_no_server_is_named(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(json.dumps(make_job(["a"])))
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    for command in (["plan", tmp_path / "job.yaml"], ["status"]):
        assert last_line(PREFECT, *command, "--home", tmp_path / "home", **home) == "code 0 imported"


def test_a_plan_of_rows_that_cannot_be_sent_says_why_and_fails(
    make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.test_command_line import overnight  # noqa: PLC0415 - the others are processes of their own

    monkeypatch.setattr("flows.__main__.has_server", lambda: False)
    (tmp_path / "job.yaml").write_text(json.dumps(make_job([None, None])))
    assert overnight("plan", tmp_path / "job.yaml", "--home", tmp_path / "home") == 1
    shown = capsys.readouterr().out
    assert "nothing: no row can be sent" in shown
    assert "| null_input | 2 | row 1: column 'text' is null |" in shown


def test_the_server_of_prefects_active_profile_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.shell import has_server  # noqa: PLC0415 - the others are processes of their own

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILE", raising=False)
    monkeypatch.setenv("PREFECT_PROFILES_PATH", str(tmp_path / "profiles.toml"))
    assert not has_server()
    (tmp_path / "profiles.toml").write_text(
        'active = "work"\n[profiles.work]\nPREFECT_API_URL = "http://p:4200/api"\n[profiles.home]\n'
    )
    assert has_server()
    monkeypatch.setenv("PREFECT_PROFILE", "home")
    assert not has_server()
    monkeypatch.setenv("PREFECT_API_URL", "http://elsewhere/api")
    assert has_server()


def test_settings_hold_where_prefect_was_imported_first() -> None:
    script = (
        "import prefect, logging\nimport flows\nfrom prefect.settings import get_current_settings as now\n"
        "print(now().server.ephemeral.startup_timeout_seconds, now().logging.extra_loggers, "
        "bool(logging.getLogger('overnight').handlers))"
    )
    names = ("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "PREFECT_LOGGING_EXTRA_LOGGERS")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env=kept, capture_output=True, text=True, check=True
    )
    assert done.stdout.split("\n")[0] == "300 ['overnight'] True"
