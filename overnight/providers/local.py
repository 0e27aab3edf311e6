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
from typing import Any

import httpx2

from overnight.errors import Terminal
from overnight.store.files import make_private

START_SECONDS = 120.0
"""The model takes 3 s to load, a cold disk and two busy cores a minute."""
SILENT_SECONDS = 15.0
"""How long another process' endpoint may say nothing: it listens before it loads its model."""
_AGAIN_SECONDS = 2.0
_LOCKED = 3
"""The exit code of an endpoint whose folder another one holds."""
_lock = threading.Lock()
_children: dict[Path, subprocess.Popen[bytes]] = {}
_kept: list[Path] = []


def local_endpoint(home: Path) -> str:
    """The base_url of the home's embedded endpoint; starts it where none answers.

    It serves from `<home>/.endpoint`, so that its batches outlive it. Another process of this home may have started it.

    Raises:
        Terminal: it ends at once, another process holds its folder and answers nothing, or it is not ready within two
            minutes; names its log.
    """
    with _lock:
        data = home / ".endpoint"
        if address := _answering(data):
            return address
        make_private(data)
        begun, silent_since = time.monotonic(), None
        if data not in _children or _children[data].poll() is not None:
            _start_anew(data)
        while (now := time.monotonic()) < begun + START_SECONDS:
            if address := _answering(data):
                return address
            if _is_locked_out(_children[data], data):
                silent_since = None if _health(data) else silent_since or now
                if silent_since and now > silent_since + SILENT_SECONDS:
                    held = f"{data} is held by another process, whose endpoint does not answer"
                    _stop(_children.pop(data))
                    raise Terminal(f"{held}: {_last_line(data)}")
                time.sleep(_AGAIN_SECONDS)
                _start_anew(data)  # the other one may have ended meanwhile
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
    health = _health(data)
    return health["address"] if health and health.get("ready") else None


def _health(data: Path) -> dict[str, Any] | None:
    """What the endpoint of a folder says of itself; None where none answers."""
    try:
        address = str(json.loads((data / "endpoint.json").read_text())["url"])
        health: dict[str, Any] = httpx2.get(address.removesuffix("/v1") + "/healthz", timeout=5).json()
    except (OSError, ValueError, KeyError, httpx2.HTTPError):
        return None
    return {**health, "address": address}


def _start_anew(data: Path) -> None:
    if data in _children:
        _stop(_children[data])
    _children[data] = _start(data)


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


def _is_locked_out(child: subprocess.Popen[bytes], data: Path) -> bool:
    """Whether it ended since another process' endpoint has the folder, which should answer soon.

    Raises:
        Terminal: it ended for any other reason.
    """
    code = child.poll()
    if code in (None, _LOCKED):
        return code == _LOCKED
    raise Terminal(f"the embedded endpoint ended with code {code}: {_last_line(data)}")


def _last_line(data: Path) -> str:
    lines = (data / "log.txt").read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


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
