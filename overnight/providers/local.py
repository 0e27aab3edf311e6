"""The embedded endpoint as a child process: started when a local job needs it, gone when this process is."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx2

from overnight.errors import Terminal
from overnight.store.files import make_private

START_SECONDS = 120.0
"""The model takes 3 s to load, a cold disk and two busy cores a minute."""
_lock = threading.Lock()
_children: dict[Path, subprocess.Popen[bytes]] = {}
_kept: list[Path] = []


def local_endpoint(home: Path) -> str:
    """The base_url of the home's embedded endpoint; starts it where none answers.

    It serves from `<home>/.endpoint`, so that its batches outlive it. Another process of this home may have started it.

    Raises:
        Terminal: it ends at once, or is not ready within two minutes; names its log.
    """
    with _lock:
        data = home / ".endpoint"
        if address := _answering(data):
            return address
        make_private(data)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if data not in _children or _children[data].poll() is not None:
                _children[data] = _start(data)
            if address := _answering(data):
                return address
            _check_child(_children[data], data)
            time.sleep(0.1)
        raise Terminal(f"the embedded endpoint is not ready after {START_SECONDS:.0f} s; its log: {data / 'log.txt'}")


def serves(home: Path) -> bool:
    """Whether this process started the home's endpoint: batches there go on only while it lives."""
    child = _children.get(home / ".endpoint")
    return child is not None and child.poll() is None


@contextmanager
def kept_running(home: Path) -> Iterator[None]:
    """Keeps the home's endpoint, once it is started, while several jobs of this process share it."""
    _kept.append(home)
    try:
        yield
    finally:
        _kept.remove(home)
        stop_local_endpoint(home)


def stop_local_endpoint(home: Path) -> None:
    """Stops the endpoint if this process started it; its batches go on at the next start."""
    if home in _kept:
        return
    with _lock:
        child = _children.pop(home / ".endpoint", None)
    if child is not None:
        _stop(child)


def _answering(data: Path) -> str | None:
    try:
        address = str(json.loads((data / "endpoint.json").read_text())["url"])
        health = httpx2.get(address.removesuffix("/v1") + "/healthz", timeout=5).json()
    except (OSError, ValueError, KeyError, httpx2.HTTPError):
        return None
    return address if health.get("ready") else None


def _start(data: Path) -> subprocess.Popen[bytes]:
    # Its stdin is a pipe that closes with this process, however it ends; its own group keeps Ctrl-C from it.
    with (data / "log.txt").open("ab") as log:
        return subprocess.Popen(  # noqa: S603 - our own module and folder
            [sys.executable, "-m", "overnight.endpoint", "--port", "0", "--data", str(data), "--exit-with-stdin"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
            cwd=Path(__file__).parent.parent,
            env=endpoint_environment(os.environ),
        )


def endpoint_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What the embedded endpoint may see: no settings of an endpoint that a person runs, whose upstream may cost."""
    kept = {name: value for name, value in environment.items() if not name.startswith("OVERNIGHT_ENDPOINT_")}
    return {**kept, "OMP_WAIT_POLICY": "passive"}


def _check_child(child: subprocess.Popen[bytes], data: Path) -> None:
    code = child.poll()
    if code is None or code == 3:  # 3: another process' endpoint has the folder, and will answer soon
        return
    lines = (data / "log.txt").read_text(errors="replace").strip().splitlines()
    raise Terminal(f"the embedded endpoint ended with code {code}: {lines[-1] if lines else 'no message'}")


def _stop(child: subprocess.Popen[bytes]) -> None:
    child.terminate()
    try:
        child.wait(timeout=15)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdin:
        child.stdin.close()


@atexit.register
def _stop_all() -> None:
    for child in list(_children.values()):
        _stop(child)
