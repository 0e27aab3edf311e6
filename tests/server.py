"""A whole overnight on this machine, as `make up` starts it: for tests of deployments and of the page."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ServerProcess:
    """A server in a Python process of its own, which prints its address and ends with its stdin."""

    def __init__(self, *program: str) -> None:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, *program], cwd=ROOT, stdin=pipe, stdout=pipe, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def stop(self) -> None:
        """Ends it."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(timeout=10)
        self.process.stdout.close()


class Local:
    """The processes of `deployments.local`, in a folder and on a port of their own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.page = f"http://127.0.0.1:{(port := free_port())}"
        ours = {
            "OVERNIGHT_HOME": str(home), "OVERNIGHT_PREFECT_PORT": str(port), "PREFECT_WORKER_QUERY_SECONDS": "1",
            "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        }  # fmt: skip
        kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        self.environment = kept | ours

    def up(self) -> None:
        """Starts what does not run."""
        self._do("up")

    def down(self) -> None:
        """Stops all of it."""
        self._do("down")

    def _do(self, what: str) -> None:
        command = [sys.executable, "-m", "deployments.local", what]
        done = subprocess.run(
            command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def kill(self, service: str) -> None:
        """Kills a service with all of its children, as a power cut would."""
        os.killpg(int((self.home / ".server" / f"{service}.pid").read_text()), signal.SIGKILL)
        (self.home / ".server" / f"{service}.pid").unlink()

    def log(self, service: str) -> str:
        """What a service has said."""
        return (self.home / ".server" / f"{service}.log").read_text(errors="replace")

    def api(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Calls Prefect's API."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.page}/api{path}", data, headers, method=method)
        content = until(lambda: self._answer(request), lambda answer: answer is not None)
        return json.loads(content) if content else None

    def _answer(self, request: urllib.request.Request) -> bytes | None:
        """A reply's body; None where the server's SQLite is busy, which a client may ask again (HTTP 503)."""
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                body: bytes = reply.read()
                return body
        except urllib.error.HTTPError as error:
            if error.code != 503:
                raise
            return None

    def api_or_none(self, path: str) -> Any:
        """Calls Prefect's API; None for what is not there yet."""
        try:
            return self.api(path)
        except urllib.error.HTTPError as error:
            if error.code != 404:
                raise
            return None

    def deployment(self, name: str) -> dict[str, Any]:
        """A deployment by `flow/name`."""
        found: dict[str, Any] = self.api(f"/deployments/name/{name}")
        return found

    def run(self, name: str, **parameters: Any) -> str:
        """Starts a run of a deployment; returns its id."""
        wanted = {"parameters": parameters, "idempotency_key": uuid4().hex}
        made = self.api(f"/deployments/{self.deployment(name)['id']}/create_flow_run", wanted)
        return str(made["id"])

    def flow_run(self, run_id: str) -> dict[str, Any]:
        """A flow run as it is now."""
        found: dict[str, Any] = self.api(f"/flow_runs/{run_id}")
        return found

    def ended(self, run_id: str, seconds: float = 90) -> dict[str, Any]:
        """Waits for a run to end."""
        run: dict[str, Any] = until(
            lambda: self.flow_run(run_id),
            lambda run: run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"),
            seconds,
        )
        return run

    def artifact(self, key: str) -> str:
        """The newest version of an artifact."""
        wanted = {"artifacts": {"key": {"any_": [key]}}, "sort": "CREATED_DESC", "limit": 1}
        return str(self.api("/artifacts/filter", wanted)[0]["data"])


def until(read: Callable[[], Any], holds: Callable[[Any], bool], seconds: float = 60) -> Any:
    """Reads until the value is as wanted; the deadline only ends a test that fails."""
    deadline = time.monotonic() + seconds
    while not holds(value := read()):
        assert time.monotonic() < deadline, f"still {value}"
        time.sleep(0.2)
    return value
