"""A home on an object store: its objects, and the working copy of them in which a process works.

Every step reads and writes files of a folder, as at a home on a disk. Where the home is a bucket, the folder is a
working copy of this process alone, empty when it begins and gone when it ends: `keep` puts a file as one whole object,
before anything counts on it, and `is_there` brings one that is not here. Objects are never renamed, never appended to,
and never found by their listing: their names stand in the ledger, with what they hold in the name of those that a build
could write twice (`requests/0001-0000-<hash>.jsonl`, `rows-<build>.parquet`). At a home on a disk all of this does
nothing.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from overnight.errors import HomeError
from overnight.store.bucket import Bucket

SCHEMES = ("s3", "gs", "az")
_KEPT_FOR_EVER = ("requests", "responses", "results")
"""Folders of a job whose files stay as they are; the others are replaced whole."""


class Kept(NamedTuple):
    """An object in a job's folder."""

    name: str
    """Below the folder: `requests/0001-0000-….jsonl`."""
    at: datetime
    """When it was put, by the store's clock."""


_homes: dict[str, Bucket] = {}
_opening = threading.Lock()
read_block: Callable[[str], dict[str, str]] | None = None
"""Reads what a block of Prefect holds, by its name; set by whoever knows Prefect."""


def open_object_home(url: str) -> Path:
    """Opens a home on an object store; returns the folder of its working copy.

    What the store asks for stands in the usual variables of the environment, or in the block that
    `OVERNIGHT_HOME_BLOCK` names.

    Args:
        url: of the home.

    Raises:
        HomeError: the URL is of another kind, or what is needed for it is not installed.
        HomeUnavailable: the store does not answer.
    """
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.netloc:
        raise HomeError(f"the home has to be a folder, or s3://bucket/prefix, gs:// or az://, not {url}: set --home or "
                        "OVERNIGHT_HOME")  # fmt: skip
    if parts.username or parts.password or parts.query:
        raise HomeError("the home's URL may not hold credentials: set those of the store in the environment (AWS_…, "
                        "GOOGLE_…, AZURE_…)")  # fmt: skip
    name = url.rstrip("/")
    with _opening:
        if name not in _homes:
            block = os.environ.get("OVERNIGHT_HOME_BLOCK")
            _homes[name] = Bucket(name, read_block(block) if block and read_block else None)
        return _homes[name].folder


def _place(path: Path) -> tuple[Bucket, str] | None:
    """The object home that a path lies in, and its name there; None for files of a disk, and of `.staging` and such."""
    for home in _homes.values():
        if path.is_relative_to(home.folder):
            below = path.relative_to(home.folder)
            if below.parts and not any(part.startswith(".") for part in below.parts[:-1]):
                return home, below.as_posix()
    return None


def _object(path: Path) -> tuple[Bucket, str] | None:
    """The same of what has a file in the working copy: a folder's mark (`.ledger.json`) has none."""
    return None if path.name.startswith(".") else _place(path)


def is_shared(path: Path) -> bool:
    """Whether a path lies in a home on an object store."""
    return any(path.is_relative_to(home.folder) for home in _homes.values())


def address(path: Path) -> str:
    """What others know a path by: its URL in a home on an object store, else itself."""
    for home in _homes.values():
        if path.is_relative_to(home.folder):
            return "/".join((home.url, *path.relative_to(home.folder).parts))
    return str(path)


def local_path(url: str) -> str:
    """The file of the working copy that a URL below a home means; any other path is itself."""
    for home in _homes.values():
        if url.startswith(f"{home.url}/") and is_there(path := home.folder / url[len(home.url) + 1 :]):
            return str(path)
    return url


def version_of(path: Path) -> str | None:
    """Which version of an object its file is a copy of; None for a file of a disk."""
    return found[0].tag(found[1]) if (found := _object(path)) is not None else None


def keep(file: Path, at: Path | None = None) -> None:
    """Puts a file into the store that its home is on: from then on it outlives this machine.

    Args:
        file: which lies here, whole.
        at: where it belongs, if it lies elsewhere still.
    """
    if (found := _object(at or file)) is not None:
        home, name = found
        home.put(name, file)


def is_there(path: Path) -> bool:
    """Whether a file of a home is there; one that lies in the store alone is brought."""
    if (found := _object(path)) is None:
        return path.exists()
    home, name = found
    if path.exists() and (path.parent.name in _KEPT_FOR_EVER or home.is_current(name)):
        return True
    return home.get(name, path)


def is_kept(path: Path) -> bool:
    """Whether a file of a home is there, be it in the store alone."""
    found = _object(path)
    return path.exists() if found is None else found[0].version(found[1]) is not None


def forget(path: Path) -> None:
    """Deletes a file of a home that nothing counts on any more."""
    path.unlink(missing_ok=True)
    if (found := _object(path)) is not None:
        found[0].delete([found[1]])


def refresh(folder: Path) -> None:
    """Drops from the working copy of a job what other processes changed: called once nobody else may."""
    if (found := _object(folder)) is not None:
        found[0].refresh(found[1])


def objects_of(folder: Path) -> list[Kept]:
    """What the store lists of a job: for leftovers, and for what a lost ledger knew."""
    if (found := _object(folder)) is None:
        return []
    home, prefix = found
    return [Kept(one["path"][len(prefix) + 1 :], one["last_modified"]) for one in home.listed(prefix)]


def move(path: Path, to: Path) -> None:
    """Has a file of a home stand under another name."""
    if (found := _object(path)) is not None:
        home, name = found
        home.copy(name, to.relative_to(home.folder).as_posix())
        forget(path)
    else:
        path.replace(to)


def read_object(path: Path) -> tuple[bytes | None, str | None] | None:
    """What a small object holds and its version, both None where there is none; None for a file of a disk."""
    if (found := _place(path)) is None:
        return None
    return found[0].read(found[1]) or (None, None)


def swap_object(path: Path, data: bytes, version: str | None) -> bool:
    """Puts a small object in place of the version that was read; False for a file of a disk.

    Raises:
        HomeError: another process put another there meanwhile.
    """
    if (found := _place(path)) is None:
        return False
    if not found[0].swap(found[1], data, version):
        raise HomeError(f"{address(path)} was written by another process meanwhile: run the job again")
    return True
