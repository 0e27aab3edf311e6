"""A Parquet table of ours as DuckDB sees it: the view `joined`, with the number of each row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb

from overnight.errors import JobError
from overnight.store.engine import open_duckdb

MEMORY = "512MB"
NUMBER = "file_row_number"
"""The column that DuckDB adds: rows from 0 in their order."""
FILE = "file_name_of_row"
"""And the path of the file that a row stands in."""


@contextmanager
def opened(*tables: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Opens a database with a table as `joined`; of several, each row tells its file.

    Raises:
        JobError: a question about it cannot be read, or needs more memory.
    """
    try:
        with TemporaryDirectory() as spill, open_duckdb(Path(spill), MEMORY) as database:
            database.execute(f"create view joined as {numbered(*tables)}")
            yield database
    except duckdb.OutOfMemoryException:
        raise JobError(f"this needs more than {MEMORY}: ask for fewer columns, or use DuckDB on {tables[0]}") from None
    except duckdb.Error as error:
        lines = [line.strip() for line in str(error).splitlines() if not line.startswith("LINE")]
        raise JobError(f"the condition cannot be read: {' '.join(lines).rstrip(' ^')}") from None


def numbered(*tables: Path) -> str:
    """A query of all of a table, with the number of each row; and the file it stands in."""
    files = f"[{', '.join(map(text, tables))}]"
    return f"select * from read_parquet({files}, {NUMBER} = true, union_by_name = true, filename = '{FILE}')"  # noqa: S608 - paths of ours


def columns_of(database: duckdb.DuckDBPyConnection, view: str = "joined") -> dict[str, str]:
    """The table's own columns and their types, in their order."""
    found = database.execute(f"describe {view}").fetchall()
    return {row[0]: row[1] for row in found if row[0] not in (NUMBER, FILE)}


def one(database: duckdb.DuckDBPyConnection, query: str, values: Sequence[Any] = ()) -> tuple[Any, ...]:
    """The one row that a query has."""
    found = database.execute(query, list(values)).fetchone()
    return found if found is not None else ()


def quoted(name: str) -> str:
    """A column's name as SQL reads it."""
    return '"' + name.replace('"', '""') + '"'


def text(value: Path | str) -> str:
    """A text or a path as SQL reads it."""
    return "'" + str(value).replace("'", "''") + "'"
