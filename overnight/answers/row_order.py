"""Results in the dataset's order, whatever the order in which they came, and in however many parts.

DuckDB finds, out of core, which result counts for each row: a relation of ids and numbers. The results may be of any
width, and a sort that spills did not do with 60,000 embeddings in 256 MB (DuckDB 2.0.1, OutOfMemoryException). So
they are dealt out instead: read once in the order of the parts, and written to one file for each range of rows, which
fits into memory when its turn comes.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from overnight.answers.results import row_count
from overnight.answers.verdicts import VERDICTS
from overnight.errors import HomeError, LedgerError
from overnight.store.engine import open_duckdb
from overnight.store.files import disk_errors, make_private
from overnight.store.parquet import open_parquet, read_batches

_FILE_BYTES = 1 << 20
"""Of one range of rows, about."""
_GATHERED_BYTES = 3 << 20
"""Dealt out at a time: each range that has a row among them costs a write."""
_MOST_FILES = 128
"""Open at the same time: macOS gives a process 256."""
_INSERT_ROWS = 16_384
_PLACES = 8192
_MEMORY = "128MB"
"""For DuckDB. It spills tables and sorts; a hash join and a group of more than two million ids failed in half as much
(2.0.1, OutOfMemoryException), so they are done for some of the ids at a time."""
_BUCKET_RESULTS = 1_000_000
"""Each bucket is a look through all ids: ten million results took twice as long in forty small ones as in ten."""
_NEW = pa.schema([("row", pa.int64()), ("attempts", pa.int32()), ("first", pa.bool_())])
Numbers = npt.NDArray[np.int64]


class RowOrder:
    """The results that count, in the order of the rows: the best verdict of a request, and of equals the latest."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """Begins empty.

        Args:
            folder: an empty one of its own.
            schema: the columns of a result that are wanted.
        """
        self._folder = folder
        self._schema = pa.schema([*schema, *_NEW])
        self._range = 1
        self._current = -1
        self._table = self._schema.empty_table()
        self._rows: Numbers = np.empty(0, np.int64)

    def deal(self, row_map: Path, rows: int, parts: Sequence[Path]) -> None:
        """Deals the results out to the rows; `row_order` has the arguments."""
        size = sum(_bytes_of(part, self._schema.names) for part in parts)
        files = min(_MOST_FILES, max(1, -(-size // _FILE_BYTES)))
        self._range = max(1, -(-rows // files))
        places = _Places(_places(self._folder, row_map, parts))
        with ExitStack() as files_open:
            writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
            for number in self._dealt(parts, places):
                for at, table in self._by_range(number):
                    if at not in writers:
                        writers[at] = files_open.enter_context(pa.ipc.new_stream(self._file(at), self._schema))
                    writers[at].write_table(table)

    def take(self, first: int, size: int) -> pa.Table:
        """Results of the rows from `first` on; nulls where a row has none. Rows are asked for in their order.

        Each comes with the number of `attempts`, and with whether the row is the `first` of those that share a request.
        """
        pieces = [self._schema.empty_table()]
        while size:
            upto = min(size, self._range - first % self._range)
            pieces.append(self._piece(first, upto))
            first, size = first + upto, size - upto
        return pa.concat_tables(pieces).combine_chunks()

    def _piece(self, first: int, size: int) -> pa.Table:
        if (at := first // self._range) != self._current:
            self._load(at)
        wanted = np.arange(first, first + size)
        if not len(self._rows):
            return self._table.take(pa.array(wanted, mask=np.ones(size, np.bool_)))
        found = np.minimum(np.searchsorted(self._rows, wanted), len(self._rows) - 1)
        return self._table.take(pa.array(found, mask=self._rows[found] != wanted))

    def _load(self, at: int) -> None:
        path, self._current = self._file(at), at
        self._table = self._schema.empty_table()
        if path.exists():
            with pa.ipc.open_stream(path) as stream:
                table = stream.read_all()
            path.unlink()
            self._table = table.take(pc.sort_indices(table["row"])).combine_chunks()
        self._rows = self._table["row"].to_numpy()

    def _file(self, at: int) -> Path:
        return self._folder / f"{at:04d}.arrow"

    def _by_range(self, table: pa.Table) -> Iterator[tuple[int, pa.Table]]:
        """Some results as one table for each range of rows."""
        table = table.take(pc.sort_indices(table["row"]))
        ranges = table["row"].to_numpy() // self._range
        starts = np.flatnonzero(np.diff(ranges, prepend=-1)).tolist()
        for start, end in zip(starts, [*starts[1:], len(ranges)], strict=True):
            yield int(ranges[start]), table.slice(start, end - start)

    def _dealt(self, parts: Sequence[Path], places: _Places) -> Iterator[pa.Table]:
        """The results that count with their rows, as many at a time as fit well into memory."""
        gathered, size = list[pa.RecordBatch](), 0
        for number, part in enumerate(parts):
            at = 0
            for batch in _wanted(part, self._schema):
                if (here := places.upto(number, at + batch.num_rows)).num_rows:
                    taken = batch.take(pc.subtract(here["n"], at))
                    columns = [*taken.columns, *(here[name] for name in _NEW.names)]
                    gathered.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
                    size += gathered[-1].nbytes
                at += batch.num_rows
                if size >= _GATHERED_BYTES:
                    yield pa.Table.from_batches(gathered)
                    gathered, size = [], 0
        if gathered:
            yield pa.Table.from_batches(gathered)


@contextmanager
def row_order(folder: Path, schema: pa.Schema, row_map: Path, rows: int, parts: Sequence[Path]) -> Iterator[RowOrder]:
    """Brings results into the order of the rows.

    Args:
        folder: where results are dealt out to, and which is gone afterwards.
        schema: the columns of a result that are wanted.
        row_map: row → custom_id, as Parquet; every custom_id may have several rows.
        rows: how many the map has.
        parts: result parts, oldest first.

    Raises:
        LedgerError: a part is damaged.
        HomeError: the folder cannot be written to.
    """
    shutil.rmtree(folder, ignore_errors=True)
    make_private(folder)
    try:
        with disk_errors(folder):
            order = RowOrder(folder, schema)
            order.deal(row_map, rows, parts)
            yield order
    except (duckdb.IOException, duckdb.OutOfMemoryException) as error:
        raise HomeError(f"cannot spill into {folder}: {str(error).splitlines()[0]}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _places(folder: Path, row_map: Path, parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Part, row in the part, and `_NEW` of every result that counts, by part."""
    buckets = 1 + sum(map(row_count, parts)) // _BUCKET_RESULTS
    with open_duckdb(folder, _MEMORY) as database:
        run = database.execute
        run("create table results (bucket int, id uhugeint, key bigint, n int)")
        run("create table rows (bucket int, id uhugeint, row bigint)")
        run("create table places (part int, n int, row bigint, attempts int, first bool)")
        _insert(database, "results", "key, n", _keys(parts), buckets)
        _insert(database, "rows", "row", read_batches(row_map, ["row", "custom_id"]), buckets)
        for bucket in range(buckets):
            run(f"""
                insert into places
                select {len(parts)} - 1 - key % {len(parts)}, n, row, attempts, row = min(row) over (partition by id)
                from (from rows where bucket = {bucket}) join (
                    select id, min(key) as key, arg_min(n, key) as n, count(*) as attempts
                    from results where bucket = {bucket} group by id
                ) using (id)
            """)  # noqa: S608 - numbers
        run("drop table results")
        run("drop table rows")
        yield from database.sql("from places order by part, n, row").to_arrow_reader(_PLACES)


def _insert(
    database: duckdb.DuckDBPyConnection, table: str, columns: str, batches: Iterator[pa.RecordBatch], buckets: int
) -> None:
    """Inserts columns with their custom_ids: as 16 bytes each, in a bucket by another hash."""
    gathered: list[pa.RecordBatch] = []

    def insert() -> None:
        database.register("gathered", pa.Table.from_batches(gathered))
        hashed = f"hash(custom_id) % {buckets}, md5_number(custom_id)"
        database.execute(f"insert into {table} select {hashed}, {columns} from gathered")  # noqa: S608 - names of ours
        database.unregister("gathered")
        gathered.clear()

    for batch in batches:
        gathered.append(batch)
        if sum(one.num_rows for one in gathered) >= _INSERT_ROWS:
            insert()
    if gathered:
        insert()


class _Places:
    """Where results go, in the order of the parts, read in pieces."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest: pa.RecordBatch | None = next(batches, None)

    def upto(self, part: int, n: int) -> pa.RecordBatch:
        """The next places of a part whose row in it is below `n`."""
        pieces = []
        while self._rest is not None:
            mine = (self._rest["part"].to_numpy() == part) & (self._rest["n"].to_numpy() < n)
            count = int(mine.sum())
            pieces.append(self._rest.slice(0, count))
            if count < self._rest.num_rows:
                self._rest = self._rest.slice(count)
                break
            self._rest = next(self._batches, None)
        return pa.concat_batches(pieces or [_NO_PLACE])


_NO_PLACE = pa.RecordBatch.from_pylist([], pa.schema([("part", pa.int32()), ("n", pa.int32()), *_NEW]))


def _keys(parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    """Id, rank and place of every result: of the lowest rank is the best verdict in the latest part."""
    ranks = pa.array(VERDICTS)
    for number, part in enumerate(parts):
        at = 0
        for batch in read_batches(part, ["custom_id", "verdict"]):
            rank = pc.index_in(batch["verdict"], value_set=ranks).cast(pa.int64())
            if rank.null_count:
                raise LedgerError(f"{part} is damaged: it has a verdict that is none")
            key = pc.add(pc.multiply(rank, len(parts)), len(parts) - 1 - number)
            n = pa.array(np.arange(at, at + batch.num_rows, dtype=np.int32))
            yield pa.RecordBatch.from_arrays([batch["custom_id"], key, n], names=["custom_id", "key", "n"])
            at += batch.num_rows


def _wanted(part: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """A part's columns as they are wanted today; parts of older versions may lack some."""
    wanted = [field for field in schema if field.name not in _NEW.names]
    with open_parquet(part) as opened:
        there = set(opened.schema_arrow.names)
    for batch in read_batches(part, [field.name for field in wanted if field.name in there]):
        columns: list[Any] = [
            batch[field.name].cast(field.type) if field.name in there else pa.nulls(batch.num_rows, field.type)
            for field in wanted
        ]
        yield pa.RecordBatch.from_arrays(columns, schema=pa.schema(wanted))


def _bytes_of(part: Path, names: Sequence[str]) -> int:
    """Bytes of some columns of a part, as they are in memory."""
    with open_parquet(part) as opened:
        groups = [opened.metadata.row_group(number) for number in range(opened.num_row_groups)]
    columns = [group.column(number) for group in groups for number in range(group.num_columns)]
    return sum(one.total_uncompressed_size for one in columns if one.path_in_schema.split(".")[0] in names)
