"""The Prefect server that a command starts where none is named: the next commands reach it too, and unused it ends.

    python -m flows.own_server FOLDER MINUTES     # what `reach_server` starts

What a process holds is said by locks, which a killed process gives back: `in-use` is shared by the commands, `serving`
is the server's, and `starting` is held by the one command that looks whether there is a server.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from overnight.errors import Terminal
from overnight.store.files import write_text

_ADDRESS, _IN_USE, _SERVING, _STARTING, _LOG = "address", "in-use", "serving", "starting", "server.log"
_LOOK_SECONDS = 0.1
_DECIDES = ("PREFECT_API_", "PREFECT_SERVER_", "PREFECT_PROFILE")
"""Variables that make another server of it."""


def reach_server(console: Console, minutes: float) -> str:
    """Gives the API's address of the server of this person and environment; starts one where there is none.

    Args:
        console: where it says that it starts one.
        minutes: how long a server that it starts outlives the last command.

    Raises:
        Terminal: it does not start; names its log.
        OSError: the folder has no locks, as on some network file systems.
    """
    folder = _folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (folder / _STARTING).open("ab") as starting:
        fcntl.flock(starting, fcntl.LOCK_EX)
        in_use = _open(folder / _IN_USE)
        fcntl.flock(in_use, fcntl.LOCK_SH)  # waits for a server that is about to end
        if _is_locked(folder / _SERVING):
            return _address(folder, None)
        (folder / _ADDRESS).unlink(missing_ok=True)
        console.print(
            f"No PREFECT_API_URL: starting a Prefect server, which takes a moment; the next commands use it too, "
            f"and it ends {minutes:g} minutes after the last (make up keeps one running, with its page).",
            style="dim",
            soft_wrap=True,
        )
        return _address(folder, _start(folder, minutes))


def _folder() -> Path:
    """One for each environment that a server is started in, below Prefect's own home."""
    decides = {name: value for name, value in os.environ.items() if name.startswith(_DECIDES)}
    told = json.dumps([sorted(decides.items()), sys.prefix, version("prefect")])
    home = Path(os.environ.get("PREFECT_HOME", "~/.prefect")).expanduser()
    return home / "overnight" / hashlib.sha256(told.encode()).hexdigest()[:12]


def _open(path: Path) -> int:
    """A file that stays open as long as this process lives, and with it a lock on it."""
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _is_locked(path: Path) -> bool:
    with path.open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _start(folder: Path, minutes: float) -> subprocess.Popen[bytes]:
    own = {"PREFECT__SERVER_EPHEMERAL": "1", "PREFECT__SERVER_FINAL": "1", "PREFECT_UI_ENABLED": "0"}
    with (folder / _LOG).open("wb") as log:
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", __name__, str(folder), str(minutes)],
            cwd=Path(__file__).parent.parent,
            env={**{name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}, **own},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the command
        )


def _address(folder: Path, process: subprocess.Popen[bytes] | None) -> str:
    """Waits for the server to say where it is."""
    deadline = time.monotonic() + float(os.environ["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"])
    while not (folder / _ADDRESS).exists():
        ended = (process is None or process.poll() is not None) and not _is_locked(folder / _SERVING)
        if ended or time.monotonic() > deadline:
            raise Terminal(
                f"the Prefect server {'ended' if ended else 'does not answer'}; its log: {folder / _LOG}. "
                "Set PREFECT_API_URL to use another one"
            )
        time.sleep(_LOOK_SECONDS)
    return (folder / _ADDRESS).read_text()


def serve(folder: Path, minutes: float) -> None:
    """Serves Prefect's API on a free port of loopback until no command has used it for a while.

    Args:
        folder: where its locks, its address and its log are.
        minutes: how long it stays unused.
    """
    with (folder / _SERVING).open("ab") as serving, socket.socket() as listening:
        fcntl.flock(serving, fcntl.LOCK_EX | fcntl.LOCK_NB)
        serving.truncate(0)
        serving.write(str(os.getpid()).encode())  # for a person who wants to stop it
        serving.flush()
        (folder / _ADDRESS).unlink(missing_ok=True)
        import uvicorn  # noqa: PLC0415 - commands do without, and the lock comes first

        listening.bind(("127.0.0.1", 0))
        served = uvicorn.Server(
            uvicorn.Config(
                "prefect.server.api.server:create_app",
                factory=True,
                log_level="error",
                lifespan="on",
                timeout_graceful_shutdown=5,
            )
        )
        address = f"http://127.0.0.1:{listening.getsockname()[1]}/api"
        threading.Thread(target=_until_unused, args=(folder, minutes, served, address), daemon=True).start()
        served.run(sockets=[listening])


def _until_unused(folder: Path, minutes: float, served: object, address: str) -> None:
    """Says the address once the server takes requests; ends the server when it is unused."""
    while not getattr(served, "started", False):
        time.sleep(_LOOK_SECONDS)
    write_text(folder / _ADDRESS, address)
    used = time.monotonic()
    in_use = _open(folder / _IN_USE)
    while True:
        try:
            fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            used = time.monotonic()
        else:
            if time.monotonic() - used > 60 * minutes:
                break  # with the lock: a command that comes now waits until this process is gone
            fcntl.flock(in_use, fcntl.LOCK_UN)
        time.sleep(_LOOK_SECONDS)
    (folder / _ADDRESS).unlink(missing_ok=True)
    served.should_exit = True  # type: ignore[attr-defined]  # uvicorn's


if __name__ == "__main__":
    serve(Path(sys.argv[1]), float(sys.argv[2]))
