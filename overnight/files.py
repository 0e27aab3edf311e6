"""Files that are whole or absent: written beside their final name, flushed to disk, then renamed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a `.part` path that takes the place of `path` when the block ends well, and is removed when not."""
    part = path.with_name(path.name + ".part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)
        sync_folder(path.parent)
    finally:
        part.unlink(missing_ok=True)


@contextmanager
def atomic_open(path: Path) -> Iterator[BinaryIO]:
    """Like `atomic_path`, with the part opened for writing bytes."""
    with atomic_path(path) as part, part.open("wb", buffering=1 << 20) as stream:
        yield stream


def write_text(path: Path, text: str) -> None:
    """Writes a whole small file atomically, as UTF-8."""
    with atomic_open(path) as stream:
        stream.write(text.encode())


def sync_folder(folder: Path) -> None:
    """Makes a rename in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
