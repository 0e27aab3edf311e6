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
def open_duckdb(spill: Path | None = None, **settings: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens an empty database of this process.

    Args:
        spill: the folder to spill into; else DuckDB's own.
        settings: more of DuckDB's.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1, "memory_limit": _MEMORY, "autoinstall_known_extensions": False, **settings,
    }  # fmt: skip
    if spill is not None:
        config["temp_directory"] = str(spill)
    with duckdb.connect(config=config) as connection:
        yield connection


@contextmanager
def spilling_duckdb(folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens an empty database with a folder of its own to spill into, which is gone afterwards.

    Raises:
        HomeError: the folder cannot be written to.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)
    try:
        with disk_errors(folder), open_duckdb(folder) as connection:
            yield connection
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise HomeError(f"cannot spill into {folder}: {str(error).splitlines()[0]}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
