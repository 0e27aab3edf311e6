"""A DuckDB query over files as the dataset (`dataset.sql`)."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import fsspec
import pyarrow as pa

from overnight.errors import DatasetError
from overnight.job.job import Dataset
from overnight.store.engine import open_duckdb

_ROWS = 2048
_MEMORY = "512MB"
"""Sorts and joins of wide rows spill, and need some room to do so: 2,000,000 texts of 400 bytes took 256 MB."""
_PROTOCOL = re.compile(r"['\"]([a-z][a-z0-9+]*)://")
_BUILT_IN = frozenset({"http", "https", "file"})


def open_query(dataset: Dataset) -> tuple[pa.Schema, Callable[[], Iterator[pa.RecordBatch]]]:
    """Checks a query, and runs it as often as its rows are asked for.

    Raises:
        DatasetError: it is no single SELECT, has no order, or DuckDB refuses it.
    """
    query = (dataset.sql or "").strip().rstrip(";")
    with _connected(dataset) as connection:
        ordered = _checked(connection, query)
        if not ordered and not dataset.key:
            raise DatasetError("dataset.sql has no order, and rows are known by their place: end it with ORDER BY over "
                               "columns that name a row, or name them in dataset.key")  # fmt: skip
        whole = query if ordered else f"select * from ({query}) order by {', '.join(map(_quoted, dataset.key))}"  # noqa: S608 - the person's own
        schema = _plain(connection.sql(f"select * from ({whole}) limit 0").to_arrow_reader(_ROWS).schema)  # noqa: S608 - the same

    def read() -> Iterator[pa.RecordBatch]:
        with _connected(dataset) as connection:
            for batch in connection.sql(whole).to_arrow_reader(_ROWS):
                yield pa.RecordBatch.from_arrays([batch[f.name].cast(f.type) for f in schema], schema=schema)

    return schema, read


@contextmanager
def _connected(dataset: Dataset) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database of its own for each reading, which finds files from the folder that `dataset.path` names."""
    folder = Path(dataset.path or ".").absolute()
    try:
        with (
            TemporaryDirectory() as spill,
            open_duckdb(Path(spill), _MEMORY, file_search_path=str(folder)) as connection,
        ):
            for protocol in set(_PROTOCOL.findall(dataset.sql or "")) - _BUILT_IN:
                connection.register_filesystem(fsspec.filesystem(protocol))
            yield connection
    except duckdb.OutOfMemoryException:
        raise DatasetError(f"dataset.sql needs more than {_MEMORY}: order by narrow columns, join and group fewer, "
                           "or write its result to Parquet and give that as dataset.path") from None  # fmt: skip
    except duckdb.Error as error:
        raise DatasetError(f"dataset.sql: {str(error).splitlines()[0]}") from None
    except (ImportError, ValueError) as error:
        raise DatasetError(f"dataset.sql: {error}") from None


def _checked(connection: duckdb.DuckDBPyConnection, query: str) -> bool:
    """Whether a query says an order at its outermost level.

    Raises:
        DatasetError: it is no single SELECT.
    """
    ((text,),) = connection.execute("select json_serialize_sql(?)", [query]).fetchall()
    parsed = json.loads(text)
    if parsed["error"]:
        raise DatasetError(f"dataset.sql: {parsed['error_message']}")
    if len(parsed["statements"]) != 1:
        raise DatasetError("dataset.sql: one SELECT is needed, not several statements")
    modifiers = parsed["statements"][0]["node"].get("modifiers", [])
    return any(one["type"] == "ORDER_MODIFIER" for one in modifiers)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _plain(schema: pa.Schema) -> pa.Schema:
    """DuckDB's own kinds (json, uuid) as what they are stored as."""
    return pa.schema([
        field.with_type(field.type.storage_type if isinstance(field.type, pa.BaseExtensionType) else field.type)
        for field in schema.remove_metadata()
    ])  # fmt: skip
