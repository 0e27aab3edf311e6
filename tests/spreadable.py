"""Work for other processes to do: a module that takes them no time to import."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from overnight.errors import Unreconciled
from overnight.store.objects import _homes


def double(item: int) -> int:
    """Doubles; some items are refused."""
    if item == 3:
        raise Unreconciled("three")
    return 2 * item


def files_of_working_copies() -> list[str]:
    """What this process has of the homes that it opened."""
    found = (path for home in _homes.values() for path in home.folder.rglob("*"))
    return [path.name for path in found if path.is_file() and path.name != ".lock"]


def die_once(marker: Path) -> str:
    """Has its process killed the first time that it is called."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return marker.name


def die_elsewhere(parent: int) -> int:
    """Has any process killed but one."""
    if os.getpid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    return parent
