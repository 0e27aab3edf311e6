"""DuckDB in bounded memory: one thread, a memory limit, spilling into a folder, nothing fetched from a network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb


@contextmanager
def open_duckdb(spill: Path, memory: str, **settings: str) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens an empty database of this process.

    Args:
        spill: the folder to spill into.
        memory: DuckDB's limit, as it words it (`64MB`); what does not spill fails above it.
        settings: more of DuckDB's.
    """
    config: dict[str, str | bool | int | float | list[str]] = {
        "threads": 1, "memory_limit": memory, "temp_directory": str(spill), "autoinstall_known_extensions": False,
        **settings,
    }  # fmt: skip
    with duckdb.connect(config=config) as connection:
        yield connection
