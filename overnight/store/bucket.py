"""The bucket that a home is on: whole objects by name, their versions, and this process's working copy of them."""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

from overnight.errors import HomeError, HomeUnavailable

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_PATIENCE = timedelta(seconds=60)
"""How long a store is waited for that says it is busy: each call is tried again until then."""
_TRIES = 15
_MOST_SAID = 300
_SCRATCH = "overnight-home-"
T = TypeVar("T")


class Bucket:
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
