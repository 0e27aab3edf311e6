"""A PostgreSQL on loopback, from the machine's own programs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.server import free_port

needs_postgresql = pytest.mark.skipif(
    shutil.which("initdb") is None, reason="needs PostgreSQL's initdb and pg_ctl in PATH"
)
_USER: dict[str, Any] = {"user": "nobody"} if os.geteuid() == 0 else {}
"""PostgreSQL does not run as root."""


class Server:
    """A PostgreSQL of its own."""

    def __init__(self) -> None:
        self.folder = Path(subprocess.check_output(["mktemp", "-d"], text=True, **_USER).strip())
        self.port = free_port()
        self.url = f"postgresql+psycopg://overnight@127.0.0.1:{self.port}/postgres"
        self._run("initdb", "-D", self.folder / "data", "-U", "overnight", "--no-sync")

    def _run(self, *command: str | Path) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd="/", **_USER)

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run("pg_ctl", "-D", self.folder / "data", "-o", options, "-l", self.folder / "log", "-w", "start")

    def database(self) -> str:
        """The URL of a new database."""
        name = f"d{uuid4().hex[:12]}"
        subprocess.run(["createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "overnight", name], check=True)
        return self.url.replace("/postgres", f"/{name}")

    def stop(self) -> None:
        self._run("pg_ctl", "-D", self.folder / "data", "-m", "immediate", "stop")
