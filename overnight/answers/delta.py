"""Commits to a Delta table: Delta keeps a transaction identifier of ours beside the rows.

It takes one from one of two writers only (delta-io/delta, PROTOCOL.md, "Transaction Identifiers").
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa

from overnight.answers.commits import Commit, Conflict
from overnight.errors import JobError
from overnight.job.job import Table

if TYPE_CHECKING:
    from deltalake import DeltaTable


def types_of(schema: pa.Schema) -> pa.Schema | None:
    """Columns as Delta has them, which is seen by writing some; None where it has no such type."""
    deltalake = _deltalake()
    with TemporaryDirectory() as folder:
        try:
            deltalake.write_deltalake(folder, pa.Table.from_batches([], schema))
            return pa.schema(deltalake.DeltaTable(folder).schema())
        except Exception:  # noqa: BLE001 - the library raises plain exceptions of Rust here
            return None


def schema_of(table: Table) -> pa.Schema | None:
    """The table's columns; None where there is no table yet.

    Raises:
        Conflict: it cannot be opened.
    """
    with _conflicts():
        there = _opened(table)
        return None if there is None else pa.schema(there.schema())


def commit(table: Table, rows: Commit) -> int:
    """Commits once; the version of the table that has the rows.

    Raises:
        Conflict: the table did not take them.
    """
    deltalake = _deltalake()
    transaction = deltalake.Transaction(rows.application, rows.version)
    properties = deltalake.CommitProperties(app_transactions=[transaction], custom_metadata={"overnight.job": rows.job})
    with _conflicts():
        there = _opened(table)
        if there is None:  # two that write the first rows would both do so: the identifier is of a table that is there
            there = deltalake.DeltaTable.create(table.uri, rows.rows.schema)
        if there.transaction_version(rows.application) == rows.version:
            return there.version()
        if table.mode == "append":
            deltalake.write_deltalake(
                there, rows.rows, mode="append", schema_mode="merge", commit_properties=properties
            )
        else:
            same = " and ".join(f"old.{_quoted(name)} = new.{_quoted(name)}" for name in rows.key)
            merger = there.merge(rows.rows, same, "new", "old", merge_schema=True, commit_properties=properties)
            merger.when_matched_update_all().when_not_matched_insert_all().execute()
        return there.version()


@contextmanager
def _conflicts() -> Iterator[None]:
    try:
        yield
    except (_deltalake().exceptions.DeltaError, OSError, ValueError) as error:
        raise Conflict(str(error)) from error


def _opened(table: Table) -> DeltaTable | None:
    """The table as it is now; None where there is none."""
    deltalake = _deltalake()
    try:
        return cast("DeltaTable", deltalake.DeltaTable(table.uri))
    except deltalake.exceptions.TableNotFoundError:
        return None


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _deltalake() -> Any:
    """The library, an extra.

    Raises:
        JobError: it is not installed.
    """
    try:
        import deltalake  # noqa: PLC0415 - an extra
    except ImportError:
        raise JobError("output.table needs a library: pip install 'overnight[delta]'") from None
    return deltalake
