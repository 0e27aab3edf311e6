"""Files that are whole or absent: written beside their final name, flushed to disk, then renamed."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from overnight.errors import HomeError
from overnight.store.objects import keep, read_object, swap_object

_DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Names the file or folder that the disk refuses.

    Raises:
        HomeError: it is full, broken, or may not be written to.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        raise HomeError(
            f"cannot write {path}: {os.strerror(error.errno or 0)}. Nothing was overwritten or left half-written: make "
            "room and run the job again, it goes on where it was"
        ) from None


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a `.part` path that takes the place of `path` when the block ends well, and is removed when not.

    In a home on an object store it is an object before it is a file.
    """
    part = path.with_name(path.name + ".part")
    make_private(part.parent)
    try:
        with disk_errors(path):
            part.touch(mode=0o600)
            yield part
            part.chmod(0o600)  # whatever the umask, and whoever wrote it: it holds somebody's rows
            with part.open("rb") as written:
                os.fsync(written.fileno())
            keep(part, at=path)
            part.replace(path)
            sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


def make_private(folder: Path) -> None:
    """Makes a folder, and those above it that are missing, for this user alone, whatever the umask."""
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for one in missing:
        one.chmod(0o700)


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Like `atomic_path`, with the part opened for writing bytes."""
    with atomic_path(path) as part, part.open("wb", buffering=1 << 20) as stream:
        yield stream


def write_text(path: Path, text: str) -> None:
    """Writes a whole small file atomically, as UTF-8."""
    with atomic_open(path) as stream:
        stream.write(text.encode())


def read_head(path: Path) -> tuple[bytes | None, str | None]:
    """A small file that is replaced again and again, and its version; None where it is not there."""
    if (found := read_object(path)) is not None:
        return found
    try:
        return path.read_bytes(), None
    except FileNotFoundError:
        return None, None


def write_head(path: Path, text: str, version: str | None) -> None:
    """Replaces it; in an object store only in place of the version that was read.

    Raises:
        HomeError: another process replaced it meanwhile.
    """
    if not swap_object(path, text.encode(), version):
        write_text(path, text)


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
