"""A whole overnight on this machine: Prefect server, deployments, automations, a worker, and the embedded endpoint.

    python -m deployments.local up        # or: make up
    python -m deployments.local down      # stops what `up` started, and nothing else

State lies in `<home>/.server`: Prefect's database, the processes' ids and their logs. `up` twice is fine.
"""

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

from cyclopts import App

from overnight.providers.local import endpoint_environment
from overnight.store.home import DEFAULT_HOME, home_path
from overnight.store.objects import address, is_shared

ROOT = Path(__file__).parent.parent
_START_SECONDS = 180.0
_STOP_SECONDS = 20.0
_PORT_VARIABLE = "OVERNIGHT_PREFECT_PORT"
app = App(name="python -m deployments.local", help="Start or stop a whole overnight on this machine.")


class Service:
    """One process that outlives this one, known by the id in its file."""

    def __init__(self, state: Path, name: str) -> None:
        self._pid_file = state / f"{name}.pid"
        self.log = state / f"{name}.log"
        self.name = name

    @property
    def pid(self) -> int | None:
        """Its process id, while it lives: it leads a process group of its own, which a recycled id rarely does."""
        try:
            pid = int(self._pid_file.read_text())
            return pid if os.getpgid(pid) == pid else None
        except (OSError, ValueError):
            return None

    def start(self, command: list[str], environment: dict[str, str]) -> None:
        """Starts it, unless it lives."""
        if self.pid is not None:
            return
        with self.log.open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - our own commands
                command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._pid_file.write_text(str(process.pid))

    def stop(self) -> bool:
        """Ends it with all of its children; False where it did not live."""
        if (pid := self.pid) is None:
            self._pid_file.unlink(missing_ok=True)
            return False
        os.killpg(pid, signal.SIGTERM)
        if not _until(lambda: self.pid is None, _STOP_SECONDS):
            os.killpg(pid, signal.SIGKILL)
        self._pid_file.unlink(missing_ok=True)
        return True


@app.command
def up() -> None:
    """Starts everything, deploys, and prints the page's address."""
    state = _state()
    port = int(os.environ.get(_PORT_VARIABLE, "4200"))
    url = f"http://127.0.0.1:{port}"
    environment = _environment(state, url)
    server = Service(state, "server")
    if server.pid is None and _taken(port):
        sys.exit(f"port {port} is in use by another process: set {_PORT_VARIABLE} to a free one")
    _say("the Prefect server (half a minute the first time)")
    server.start([_tool("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)], environment)
    if not _until(lambda: _healthy(url), _START_SECONDS):
        sys.exit(f"the Prefect server does not answer; its log: {server.log}")
    (state / "address.json").write_text(json.dumps({"page": url, "api": f"{url}/api"}))
    prefect = _tool("prefect")
    _say("the work pool, the deployments, the automations and the block type")
    _run([prefect, "work-pool", "create", "overnight", "--type", "process", "--overwrite"], environment)
    _run([prefect, "--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all"], environment)
    _run([sys.executable, "-m", "deployments.automations"], environment)
    _run([_tool("overnight"), "register"], environment)
    _say("a worker, and the embedded endpoint")
    worker = [prefect, "worker", "start", "--pool", "overnight", "--name", "local"]
    Service(state, "worker").start(worker, environment)
    data = str(_folder() / ".endpoint")
    endpoint = [sys.executable, "-m", "overnight.endpoint", "--port", "0", "--data", data]
    Service(state, "endpoint").start(endpoint, endpoint_environment(environment))
    print(f"page: {url}/v2")  # noqa: T201 - it is the output; the older page does not draw the report's charts
    print(f"for the command line: export PREFECT_API_URL={url}/api")  # noqa: T201 - as above


@app.command
def down() -> None:
    """Stops what `up` started; runs, answers and history stay."""
    state = _state()
    for name in ("worker", "endpoint", "server"):
        if Service(state, name).stop():
            print(f"stopped the {name}")  # noqa: T201 - it is the output
    (state / "address.json").unlink(missing_ok=True)


def _say(what: str) -> None:
    print(f"starting {what}", flush=True)  # noqa: T201 - it is the output


def _folder() -> Path:
    """A folder of this machine: the home, unless that is on an object store."""
    return home_path(DEFAULT_HOME) if is_shared(home := home_path()) else home


def _state() -> Path:
    state = _folder() / ".server"
    state.mkdir(parents=True, exist_ok=True)
    return state


def _environment(state: Path, url: str) -> dict[str, str]:
    ours = {
        "PREFECT_HOME": str(state / "prefect"),
        "PREFECT_API_URL": f"{url}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "DO_NOT_TRACK": "1",
        "OVERNIGHT_HOME": address(home_path()),
    }
    return {**os.environ, **ours}


def _tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _run(command: list[str], environment: dict[str, str]) -> None:
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)  # noqa: S603 - our own commands
    if done.returncode:
        sys.exit(f"{' '.join(command[-6:])} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/api/health", timeout=2) as reply:  # noqa: S310 - our own address
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _until(holds: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


if __name__ == "__main__":
    app()
