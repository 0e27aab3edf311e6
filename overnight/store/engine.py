"""DuckDB in bounded memory: one thread, a memory limit, spilling into a folder, nothing fetched from a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from overnight.errors import HomeError
from overnight.store.files import disk_errors, make_private

_MEMORY = "64MB"
"""Enough for the ids of any number of requests, since they spill; texts do not go through it."""


@contextmanager
def spilling_duckdb(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens an empty database of this process, with a folder to spill into that is gone afterwards.

    Raises:
        HomeError: the folder cannot be written to.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)
    settings: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1, "memory_limit": _MEMORY, "temp_directory": str(folder), "autoinstall_known_extensions": False,
    }  # fmt: skip
    try:
        with disk_errors(folder), duckdb.connect(config=settings) as connection:
            yield connection
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise HomeError(f"cannot spill into {folder}: {str(error).splitlines()[0]}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
