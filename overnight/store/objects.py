"""A home on an object store: its objects, and the working copy of them in which a process works.

Every step reads and writes files of a folder, as at a home on a disk. Where the home is a bucket, the folder is a
working copy of this process alone, empty when it begins and gone when it ends: `keep` puts a file as one whole object,
before anything counts on it, and `is_there` brings one that is not here. Objects are never renamed, never appended to,
and never found by their listing: their names stand in the ledger, with what they hold in the name of those that a build
could write twice (`requests/0001-0000-<hash>.jsonl`, `rows-<build>.parquet`). At a home on a disk all of this does
nothing.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from overnight.errors import HomeError, HomeUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
_PATIENCE = timedelta(seconds=60)
"""How long a store is waited for that says it is busy: each call is tried again until then."""
_TRIES = 15
_MOST_SAID = 300
_SCRATCH = "overnight-home-"
_KEPT_FOR_EVER = ("requests", "responses", "results")
"""Folders of a job whose files stay as they are; the others are replaced whole."""
T = TypeVar("T")


class Kept(NamedTuple):
    """An object in a job's folder."""

    name: str
    """Below the folder: `requests/0001-0000-….jsonl`."""
    at: datetime
    """When it was put, by the store's clock."""


class ObjectHome:
    """A home on an object store, with this process's working copy of it."""

    def __init__(self, url: str, secrets: dict[str, str] | None = None) -> None:
        """Opens it, and sees whether the bucket is there and lets us in.

        Args:
            url: `s3://bucket/prefix`, `gs://…` or `az://container/prefix`.
            secrets: what the store asks for (`access_key_id`, …); else the usual variables of the environment.

        Raises:
            HomeError: the package is not installed, or the URL is not one of a bucket that can be listed.
            HomeUnavailable: the store does not answer.
        """
        try:
            import obstore  # noqa: PLC0415 - only where the home is on an object store
            from obstore.store import from_url  # noqa: PLC0415
        except ImportError:
            raise HomeError(
                f"the home {url} is on an object store: pip install 'overnight[objects,postgres]'"
            ) from None
        self.url = url.rstrip("/")
        self._api: Any = obstore
        retries: Any = {"max_retries": _TRIES, "retry_timeout": _PATIENCE}
        config: Any = dict(secrets or {})  # of whichever store the URL is
        client: Any = {"allow_http": True} if config.pop("allow_http", "") == "true" else None
        try:
            self._store: ObjectStore = from_url(self.url, config=config, client_options=client, retry_config=retries)
        except (obstore.exceptions.BaseError, ValueError) as error:
            raise HomeError(f"the home {url} cannot be used: {_first_line(error)}") from None
        self._call(lambda: next(iter(obstore.list(self._store, chunk_size=1)), None))
        self.folder = _scratch()
        self._tags: dict[str, str | None] = {}
        """The version of each object that is here, by its name."""

    def put(self, name: str, file: Path) -> None:
        """Puts a file as one object."""
        told = self._call(lambda: self._api.put(self._store, name, file))
        self._tags[name] = told.get("e_tag")

    def get(self, name: str, path: Path) -> bool:
        """Brings an object as a file; False where there is none."""
        if (found := self._found(lambda: self._api.get(self._store, name))) is None:
            return False
        part = path.with_name(f"{path.name}.{uuid4().hex}")  # threads may bring the same at once
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            with part.open("wb") as stream:
                for chunk in found.stream(min_chunk_size=1 << 20):
                    stream.write(chunk)
            if part.stat().st_size != found.meta["size"]:
                raise HomeUnavailable(f"{self.url}/{name} came cut short: run the same command again")
            part.replace(path)
        except self._api.exceptions.BaseError as error:
            raise self._failure(error) from None
        finally:
            part.unlink(missing_ok=True)
        self._tags[name] = found.meta["e_tag"]
        return True

    def version(self, name: str) -> str | None:
        """What tells an object from those that stood there before; None where there is none."""
        found = self._found(lambda: self._api.head(self._store, name))
        return found and (found["e_tag"] or "")

    def tag(self, name: str) -> str | None:
        """The version of an object that is here."""
        return self._tags.get(name)

    def is_current(self, name: str) -> bool:
        """Whether the file that is here is the object as it is now."""
        return name in self._tags and self._tags[name] == self.version(name)

    def read(self, name: str) -> tuple[bytes, str | None] | None:
        """A small object and its version; None where there is none."""
        found = self._found(lambda: self._api.get(self._store, name))
        return found and (found.bytes().to_bytes(), found.meta["e_tag"])

    def swap(self, name: str, data: bytes, version: str | None) -> bool:
        """Puts a small object in place of one version, or where there is none yet; False where another stands there.

        A call whose reply was lost is made again by the client, and refused then: what stands there is what was put.
        """
        mode = "create" if version is None else {"e_tag": version}
        refused = (self._api.exceptions.PreconditionError, self._api.exceptions.AlreadyExistsError)
        try:
            self._call(lambda: self._api.put(self._store, name, data, mode=mode, use_multipart=False), refused)
        except refused:
            return (self.read(name) or (None,))[0] == data
        return True

    def delete(self, names: Iterable[str]) -> None:
        """Deletes objects; those that are gone already are none of its business."""
        for name in names:
            self._tags.pop(name, None)
            self._found(partial(self._api.delete, self._store, name))

    def copy(self, name: str, to: str) -> None:
        """Has the store copy an object."""
        self._call(lambda: self._api.copy(self._store, name, to))

    def listed(self, prefix: str) -> list[dict[str, Any]]:
        """What the store lists below a folder."""
        return self._call(lambda: [one for some in self._api.list(self._store, prefix) for one in some])

    def refresh(self, prefix: str) -> None:
        """Drops from the working copy what another process has replaced or deleted since."""
        now = {one["path"]: one["e_tag"] for one in self.listed(prefix)}
        mine = [name for name in self._tags if name.startswith(f"{prefix}/")]
        for name in [name for name in mine if now.get(name) != self._tags[name]]:
            del self._tags[name]
            (self.folder / name).unlink(missing_ok=True)

    def _found(self, call: Callable[[], T]) -> T | None:
        try:
            return self._call(call, (FileNotFoundError,))
        except FileNotFoundError:
            return None

    def _call(self, call: Callable[[], T], told: tuple[type[BaseException], ...] = ()) -> T:
        """Calls the store; of its errors only those in `told` come as they are."""
        try:
            return call()
        except told:
            raise
        except (self._api.exceptions.BaseError, FileNotFoundError, PermissionError) as error:
            raise self._failure(error) from None

    def _failure(self, error: Exception) -> HomeError | HomeUnavailable:
        known, said = self._api.exceptions, _first_line(error)
        if isinstance(error, known.UnauthenticatedError | known.PermissionDeniedError | PermissionError):
            return HomeError(f"the home {self.url} lets nobody in with these credentials ({said}): set those of the "
                             "store in the environment (AWS_…, GOOGLE_…, AZURE_…)")  # fmt: skip
        if isinstance(error, known.NotFoundError | FileNotFoundError) or "404 Not Found" in said:
            return HomeError(f"the home {self.url} is not there ({said}): is the bucket's name right?")
        return HomeUnavailable(f"the home {self.url} does not answer ({said}): run the same command again, it goes on "
                               "where it was")  # fmt: skip


def _first_line(error: BaseException) -> str:
    said = str(error).strip() or type(error).__name__
    return said.splitlines()[0].strip()[:_MOST_SAID]


def _scratch() -> Path:
    """A folder for this process alone, gone when it ends; those of killed ones are removed on the way."""
    root = Path(tempfile.gettempdir())
    for old in root.glob(f"{_SCRATCH}*"):
        _remove_unused(old)
    folder = Path(tempfile.mkdtemp(prefix=_SCRATCH)).resolve()
    lock = os.open(folder / ".locking", os.O_CREAT | os.O_RDWR, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # until this process ends, however it ends
    (folder / ".locking").rename(folder / ".lock")  # nobody finds it before it is held
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return folder


def _remove_unused(folder: Path) -> None:
    try:
        lock = os.open(folder / ".lock", os.O_RDWR)
    except OSError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
    except OSError:
        pass
    finally:
        os.close(lock)


_homes: dict[str, ObjectHome] = {}
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
            _homes[name] = ObjectHome(name, read_block(block) if block and read_block else None)
        return _homes[name].folder


def _place(path: Path) -> tuple[ObjectHome, str] | None:
    """The object home that a path lies in, and its name there; None for files of a disk, and of `.staging` and such."""
    for home in _homes.values():
        if path.is_relative_to(home.folder):
            below = path.relative_to(home.folder)
            if below.parts and not any(part.startswith(".") for part in below.parts[:-1]):
                return home, below.as_posix()
    return None


def _object(path: Path) -> tuple[ObjectHome, str] | None:
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


def keep_new(file: Path) -> None:
    """Puts what another process wrote into the working copy of this one."""
    if file.exists() and _object(file) is not None and version_of(file) is None:
        keep(file)


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
