"""The server as a process: one per directory, its address on disk, its keys, its clean ends."""

import fcntl
import json
import signal
import subprocess
from pathlib import Path

import httpx2
import openai
import pytest

from overnight.errors import Terminal
from overnight.providers import local
from tests.test_endpoint_support import client, command, endpoint, health


def test_a_second_server_on_the_same_directory_leaves_with_3_and_says_who_holds_it(tmp_path: Path) -> None:
    with endpoint(tmp_path, "--upstream", "http://127.0.0.1:9") as first:
        second = subprocess.run(command(tmp_path), capture_output=True, text=True, check=False, timeout=30)
        assert second.returncode == 3
        assert f"process {first.process.pid}" in second.stderr
        assert health(first.url)["ready"]


def test_clients_must_send_the_key_when_there_is_one(tmp_path: Path) -> None:
    options = ("--client-key-env", "CLIENT_KEY", "--upstream", "http://127.0.0.1:9")
    with endpoint(tmp_path, *options, CLIENT_KEY="s3cret") as running:
        with client(running.url, "wrong") as stranger, pytest.raises(openai.AuthenticationError) as refusal:
            stranger.batches.list()
        assert refusal.value.code == "invalid_api_key"
        assert httpx2.get(f"{running.url}/files").status_code == 401
        with client(running.url, "s3cret") as known:
            assert known.batches.list().data == []
        assert health(running.url)["ready"]


def test_it_says_where_it_listens_and_stops_cleanly_with_its_parents_stdin(tmp_path: Path) -> None:
    with endpoint(tmp_path, "--exit-with-stdin", "--upstream", "http://127.0.0.1:9") as running:
        address = json.loads((tmp_path / "endpoint.json").read_text())
        assert (address["url"], address["pid"]) == (running.url, running.process.pid)
        assert running.process.stdin is not None
        running.process.stdin.close()
        assert running.process.wait(30) == 0
    assert not (tmp_path / "endpoint.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_signal_stops_it_cleanly(tmp_path: Path, number: signal.Signals) -> None:
    with endpoint(tmp_path) as running:
        running.process.send_signal(number)
        assert running.process.wait(30) == 0
    assert not (tmp_path / "endpoint.json").exists()


def test_a_missing_key_variable_is_said_before_anything_starts(tmp_path: Path) -> None:
    options = ("--upstream", "http://127.0.0.1:9", "--key-env", "OVERNIGHT_NO_SUCH_KEY")
    ended = subprocess.run(command(tmp_path, *options), capture_output=True, text=True, check=False, timeout=30)
    assert ended.returncode == 1
    assert "export OVERNIGHT_NO_SUCH_KEY=<key>" in ended.stderr


def test_an_endpoint_whose_folder_is_held_by_a_process_that_says_nothing_is_told_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "SILENT_SECONDS", 1.0)
    data = tmp_path / ".endpoint"
    data.mkdir()
    with (data / "endpoint.lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 1\n")
        lock.flush()
        with pytest.raises(Terminal, match=r"held by another process, whose endpoint does not answer: .*process 1"):
            local.local_endpoint(tmp_path)
    assert len((data / "log.txt").read_text().splitlines()) <= 3
