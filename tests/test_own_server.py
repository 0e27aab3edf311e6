"""The Prefect server that commands share where none is named."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from rich.console import Console

from flows.own_server import reach_server
from flows.shell import reach_prefect
from overnight.errors import JobError, Terminal
from tests.conftest import ROOT

_HOLDER = (
    "import flows\nfrom rich.console import Console\nfrom flows.own_server import reach_server\n"
    "print(reach_server(Console(stderr=True), 0.02), flush=True)\ninput()"
)


def command(home: Path) -> subprocess.Popen[str]:
    """A process that uses the server until it is ended."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    return subprocess.Popen(
        [sys.executable, "-c", _HOLDER],
        cwd=ROOT,
        env=environment | {"PREFECT_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def address(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=10) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def server_of(home: Path) -> int:
    """The process that serves."""
    (serving,) = home.glob("overnight/*/serving")
    return int(serving.read_text())


def test_commands_share_one_server_which_ends_when_none_of_them_lives(tmp_path: Path) -> None:
    first, second = command(tmp_path), command(tmp_path)
    try:
        url = address(first)
        assert url == address(second)
        assert answers(url)
        end(first)  # the other one still uses it
        os.kill(server_of(tmp_path), signal.SIGKILL)
        third = command(tmp_path)
        try:
            anew = address(third)
            assert answers(anew)
        finally:
            end(third)
    finally:
        end(second)
    deadline = time.monotonic() + 60
    while answers(anew):
        assert time.monotonic() < deadline, "it outlives its last command"
        time.sleep(0.1)


def test_a_server_that_does_not_start_names_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_SERVER_DATABASE_CONNECTION_URL", "nonsense")
    with pytest.raises(Terminal, match=r"the Prefect server ended; its log: .*server\.log\. Set PREFECT_API_URL"):
        reach_server(Console(stderr=True), 1)


@pytest.mark.usefixtures("prefect_server")
def test_a_server_that_is_named_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    reach_prefect(Console(stderr=True))
    assert not (tmp_path / "overnight").exists()


def test_minutes_that_are_no_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.shell import _server_minutes  # noqa: PLC0415 - beside its test

    monkeypatch.setenv("OVERNIGHT_SERVER_MINUTES", "ten")
    with pytest.raises(JobError, match="write a number of minutes"):
        _server_minutes()
