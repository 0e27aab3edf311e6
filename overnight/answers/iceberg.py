"""Commits to an Iceberg table: a property of ours is set in the transaction that adds the rows.

Iceberg has no transaction identifiers. What it has is a commit that holds only where the table is still as it was read
(`assert-ref-snapshot-id`). PyIceberg 0.12 tries a commit that lost against another once more on top of that one, which
would add the same rows twice; so it is told not to, and what the other one committed is looked at first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from overnight.answers.commits import Commit, Conflict
from overnight.errors import JobError
from overnight.job.job import Table

if TYPE_CHECKING:
    from pyiceberg.catalog import Catalog
    from pyiceberg.table import Table as IcebergTable

_NAME = "overnight.a"


def types_of(schema: pa.Schema) -> pa.Schema | None:
    """Columns as Iceberg has them, which is seen by making a table of them; None where it has no such type."""
    memory = _module("pyiceberg.catalog.memory")
    with TemporaryDirectory() as folder:
        catalog = memory.InMemoryCatalog("overnight", warehouse=folder)
        catalog.create_namespace("overnight")
        try:
            return cast("pa.Schema", catalog.create_table(_NAME, schema).schema().as_arrow())
        except Exception:  # noqa: BLE001 - it raises TypeError, ValueError and errors of its own for a type
            return None


def schema_of(table: Table) -> pa.Schema | None:
    """The table's columns; None where there is no table yet.

    Raises:
        Conflict: the catalog cannot be opened.
    """
    with _conflicts():
        there = _opened(_catalog(table), table)
        return None if there is None else there.schema().as_arrow()


def commit(table: Table, rows: Commit) -> int:
    """Commits once; a snapshot of the table that has the rows.

    Raises:
        Conflict: the table did not take them.
    """
    mark = rows.application.replace("/", ".")
    with _conflicts():
        catalog = _catalog(table)
        there = _opened(catalog, table) or _made(catalog, table, rows.rows.schema)
        if mark not in there.properties:
            there.metadata.properties["commit.retry.num-retries"] = "0"
            with there.transaction() as transaction:
                with transaction.update_schema() as update:
                    update.union_by_name(rows.rows.schema)
                transaction.set_properties({mark: str(rows.version)})
                transaction.append(rows.rows, snapshot_properties={"overnight.job": rows.job})
        snapshot = there.current_snapshot()
        return snapshot.snapshot_id if snapshot is not None else 0


def _catalog(table: Table) -> Catalog:
    name = table.uri.partition(".")[0]
    return cast("Catalog", _module("pyiceberg.catalog").load_catalog(name))


def _opened(catalog: Catalog, table: Table) -> IcebergTable | None:
    try:
        return catalog.load_table(table.uri.partition(".")[2])
    except _module("pyiceberg.exceptions").NoSuchTableError:
        return None


def _made(catalog: Catalog, table: Table, schema: pa.Schema) -> IcebergTable:
    name = table.uri.partition(".")[2]
    catalog.create_namespace_if_not_exists(name.rpartition(".")[0])
    return catalog.create_table_if_not_exists(name, schema)


@contextmanager
def _conflicts() -> Iterator[None]:
    try:
        yield
    except JobError:
        raise
    except Exception as error:  # the errors of a catalog are those of its kind: of a database, or of HTTP
        raise Conflict(str(error)) from error


def _module(name: str) -> Any:
    """A module of the library, an extra.

    Raises:
        JobError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError:
        raise JobError("output.table needs a library: pip install 'overnight[iceberg]'") from None
