"""The joined rows in a table of a lakehouse: committed exactly once, however often a run is killed and comes again.

Each commit carries a transaction identifier of ours, which Delta keeps beside the rows and takes from one of two
writers only (delta-io/delta, PROTOCOL.md, "Transaction Identifiers"). For `append` the rows and what was asked of them
are an application of their own: they are added once, whatever was added since. For `merge` the job is, and the version
is a hash of the joined file: rows that came back to what they were are merged anew. So what was committed is read from
the table, and never from what a killed process may have failed to write down.
"""

from __future__ import annotations

import hashlib
import io
import re
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.errors import JobError, Terminal
from overnight.job.job import Job, Table
from overnight.ledger.records import JobRecord
from overnight.ledger.run import Run
from overnight.store.home import shown

if TYPE_CHECKING:
    from deltalake import DeltaTable, Transaction

_TRIES = 5
"""Another writer of the table may be faster; delta-rs itself tries again where the two do not contradict."""
_ROWS = 65_536
"""Handed over at a time."""
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")
_WIDER = {
    pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64(), pa.uint64(): pa.decimal128(20, 0),
}  # fmt: skip


def check_table(job: Job, joined: pa.Schema) -> None:
    """Looks at the table before anything is spent.

    Args:
        job: with its `output.table`, or without.
        joined: the columns to be committed.

    Raises:
        JobError: it cannot be opened, it cannot hold a column, or has one of another type.
    """
    if (table := job.output.table) is None:
        return
    deltalake = _deltalake()
    here = pa.schema([_tried(field) for field in joined])
    try:
        there = _opened(table)
    except (deltalake.exceptions.DeltaError, OSError, ValueError) as error:
        raise JobError(f"output.table: {table.uri} cannot be opened: {_said(error)}") from None
    if there is None:
        return
    types = {field.name: field.type for field in pa.schema(there.schema())}
    wrong = [
        f"{field.name!r} is {types[field.name]} there, and {field.type} here"
        for field in here
        if types.get(field.name, field.type) != field.type
    ]
    if wrong:
        raise JobError(f"output.table: {table.uri} has columns of other types: {'; '.join(wrong)}")


def commit_joined(run: Run, record: JobRecord, *, awaited: bool) -> int | None:
    """Commits the joined file to the job's table, unless that was done.

    Args:
        run: the job, joined.
        record: as it was built.
        awaited: whether rows may be answered yet.

    Returns:
        The version of the table that holds the rows; None where they are to be appended, and some have no verdict yet.

    Raises:
        Terminal: the table does not take them. The joined file is whole, and the next run tries again.
    """
    table = run.job.output.table
    if table is None or (table.mode == "append" and (awaited or not _is_settled(run, record))):
        return None
    deltalake = _deltalake()
    transaction = deltalake.Transaction(*_identity(run, table))
    failure: Exception | None = None
    for _ in range(_TRIES):
        try:
            there = _opened(table)
            if there is not None and there.transaction_version(transaction.app_id) == transaction.version:
                return there.version()
            return _write(run, table, there, transaction)
        except (deltalake.exceptions.DeltaError, OSError) as error:
            failure = error
    raise Terminal(
        f"output.table: {table.uri} did not take the rows of {run.job.name}: {_said(failure)}. "
        f"{shown(run.folder.joined)} is whole, and the next run tries again; nothing is sent twice"
    )


def _identity(run: Run, table: Table) -> tuple[str, int]:
    """What a commit is known again by: its application and its version, of 63 bits as Delta's signed number."""
    application = f"overnight/{run.job.name}"
    if table.mode == "append":
        return f"{application}/{_rows_digest(run)}", 1
    with run.folder.joined.open("rb") as joined:
        digest = hashlib.file_digest(joined, "sha256").digest()
    return application, int.from_bytes(digest[:8]) >> 1


def _rows_digest(run: Run) -> str:
    """A hash of the dataset's rows and what was asked of each: the joined columns up to the custom_id."""
    digest = _Digest()
    with pq.ParquetFile(run.folder.joined) as joined:
        names = joined.schema_arrow.names
        names = names[: names.index(run.job.output.prefix + "custom_id") + 1]
        schema = pa.schema([joined.schema_arrow.field(name) for name in names])
        with pa.ipc.new_stream(digest, schema) as stream:
            for batch in joined.iter_batches(_ROWS, columns=names):
                stream.write_batch(batch)
    return digest.sha256.hexdigest()


class _Digest(io.RawIOBase):
    """A file of which only the hash is kept."""

    def __init__(self) -> None:
        self.sha256 = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return len(data)


def _is_settled(run: Run, record: JobRecord) -> bool:
    """Whether each request has its verdict."""
    return record.stopped is None and all(shard.settled for shard in run.ledger.shards(run.job.name))


def _write(run: Run, table: Table, there: DeltaTable | None, transaction: Transaction) -> int:
    """Commits once; the version that it made."""
    deltalake = _deltalake()
    properties = deltalake.CommitProperties(
        app_transactions=[transaction], custom_metadata={"overnight.job": run.job.name}
    )
    with pq.ParquetFile(run.folder.joined) as joined:
        schema = pa.schema([_kept(field) for field in joined.schema_arrow])
        batches = (batch.cast(schema, safe=False) for batch in joined.iter_batches(_ROWS))
        rows = pa.RecordBatchReader.from_batches(schema, batches)
        if there is None:
            deltalake.write_deltalake(table.uri, rows, commit_properties=properties)
            return 0
        if table.mode == "append":
            deltalake.write_deltalake(there, rows, mode="append", schema_mode="merge", commit_properties=properties)
        else:
            same = " and ".join(f"old.{_quoted(name)} = new.{_quoted(name)}" for name in run.job.dataset.key)
            merger = there.merge(rows, same, "new", "old", merge_schema=True, commit_properties=properties)
            merger.when_matched_update_all().when_not_matched_insert_all().execute()
        return there.version()


def _opened(table: Table) -> DeltaTable | None:
    """The table as it is now; None where there is none."""
    deltalake = _deltalake()
    try:
        return cast("DeltaTable", deltalake.DeltaTable(table.uri))
    except deltalake.exceptions.TableNotFoundError:
        return None


def _tried(field: pa.Field) -> pa.Field:
    """A column as Delta has it, which is seen by writing one.

    Raises:
        JobError: it has no such type.
    """
    deltalake = _deltalake()
    with TemporaryDirectory() as folder:
        schema = pa.schema([_kept(field)])
        try:
            deltalake.write_deltalake(folder, pa.Table.from_batches([], schema))
            return pa.schema(deltalake.DeltaTable(folder).schema()).field(0)
        except Exception:  # noqa: BLE001 - the library raises plain exceptions of Rust here
            raise JobError(
                f"output.table: Delta has no type for the column {field.name!r} ({field.type}); leave it out, or cast "
                "it in a dataset.sql"
            ) from None


def _kept(field: pa.Field) -> pa.Field:
    """A column before Delta takes it: it has no unsigned numbers, and casts them to signed ones of the same size."""
    match field.type:
        case kind if kind in _WIDER:
            return field.with_type(_WIDER[kind])
        case kind if pa.types.is_timestamp(kind):
            return field.with_type(pa.timestamp("us", "UTC" if kind.tz else None))
        case _:
            return field


def _said(error: Exception | None) -> str:
    """An error of the library on one line: it draws a tree of them, in colours."""
    return " ".join(_COLOURS.sub("", str(error)).split())


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
