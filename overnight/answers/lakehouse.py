"""The joined rows in a table of a lakehouse: committed exactly once, however often a run is killed and comes again.

Each commit carries an identifier of ours, which the table keeps in the same transaction as the rows. For `append` the
rows and what was asked of them are an application of their own: they are added once, whatever was added since. For
`merge` the job is, and the version is a hash of the joined file: rows that came back to what they were are merged anew.
So what was committed is read from the table, and never from what a killed process may have failed to write down.
"""

from __future__ import annotations

import hashlib
import re

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.answers import delta, iceberg
from overnight.answers.commits import Commit, Conflict
from overnight.answers.digest import values_digest
from overnight.errors import JobError, LedgerError, Terminal
from overnight.job.job import Job, Table
from overnight.ledger.records import JobRecord
from overnight.ledger.run import Run
from overnight.store.home import shown
from overnight.store.objects import is_there

_TRIES = 5
"""Another writer of the table may be faster."""
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
    name, types_of = ("Delta", delta.types_of) if table.format == "delta" else ("Iceberg", iceberg.types_of)
    if (here := types_of(_kept(joined))) is None:
        field = next((one for one in joined if types_of(_kept(pa.schema([one]))) is None), joined.field(0))
        raise JobError(
            f"output.table: {name} has no type for the column {field.name!r} ({field.type}); leave it out, or cast it "
            "in a dataset.sql"
        )
    try:
        there = delta.schema_of(table) if table.format == "delta" else iceberg.schema_of(table)
    except Conflict as error:
        raise JobError(f"output.table: {table.uri} cannot be opened: {_said(error)}") from None
    types = {field.name: field.type for field in there or ()}
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
        The version, or snapshot, of the table that holds the rows; None where they are to be appended, and some have
        no verdict yet.

    Raises:
        LedgerError: the joined file is gone.
        Terminal: the table does not take them. The joined file is whole, and the next run tries again.
    """
    table = run.job.output.table
    if table is None or (table.mode == "append" and (awaited or not _is_settled(run, record))):
        return None
    if not is_there(run.folder.joined):
        raise LedgerError(f"{shown(run.folder.joined)} is gone: run the job again")
    application, version = _identity(run, table)
    failure: Conflict | None = None
    for _ in range(_TRIES):
        with pq.ParquetFile(run.folder.joined) as joined:
            schema = _kept(joined.schema_arrow)
            batches = (batch.cast(schema, safe=False) for batch in joined.iter_batches(_ROWS))
            rows = pa.RecordBatchReader.from_batches(schema, batches)
            commit = Commit(run.job.name, tuple(run.job.dataset.key), application, version, rows)
            try:
                return delta.commit(table, commit) if table.format == "delta" else iceberg.commit(table, commit)
            except Conflict as error:
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
    with pq.ParquetFile(run.folder.joined) as joined:
        names = joined.schema_arrow.names
        names = names[: names.index(run.job.output.prefix + "custom_id") + 1]
        schema = pa.schema([joined.schema_arrow.field(name) for name in names])
        return values_digest(schema, joined.iter_batches(_ROWS, columns=names))


def _is_settled(run: Run, record: JobRecord) -> bool:
    """Whether each request has its verdict."""
    return record.stopped is None and all(shard.settled for shard in run.ledger.shards(run.job.name))


def _kept(schema: pa.Schema) -> pa.Schema:
    """The columns before a table takes them: it has no unsigned numbers, and times to the microsecond."""
    return pa.schema([_kept_field(field) for field in schema])


def _kept_field(field: pa.Field) -> pa.Field:
    match field.type:
        case kind if kind in _WIDER:
            return field.with_type(_WIDER[kind])
        case kind if pa.types.is_timestamp(kind):
            return field.with_type(pa.timestamp("us", "UTC" if kind.tz else None))
        case _:
            return field


def _said(error: Exception | None) -> str:
    """An error of a library on one line: it draws a tree of them, in colours."""
    return " ".join(_COLOURS.sub("", str(error)).split())
