"""Results in the dataset's order, whatever the order in which they came, and in however many parts.

DuckDB finds, out of core, which result counts for each row: a relation of ids and numbers. The results may be of any
width, and a sort that spills did not do with 60,000 embeddings in 256 MB (DuckDB 2.0.1, OutOfMemoryException). So
they are dealt out instead: read once in the order of the parts, and written to one file for each range of rows, which
fits into memory when its turn comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from overnight.answers.verdicts import VERDICTS
from overnight.errors import LedgerError
from overnight.store.parquet import open_parquet, read_batches

_FILE_BYTES = 4 << 20
"""Of one range of rows, about; and of what is gathered before it is dealt out."""
_MOST_FILES = 128
"""Open at the same time: macOS gives a process 256."""
_INSERT_ROWS = 16_384
_PLACES = 8192
_NEW = pa.schema([("row", pa.int64()), ("attempts", pa.int32())])
Numbers = npt.NDArray[np.int64]


class RowOrder:
    """The results that count, in the order of the rows: the best verdict of a request, and of equals the latest."""

    def __init__(self, database: duckdb.DuckDBPyConnection, folder: Path, schema: pa.Schema) -> None:
        """Begins empty.

        Args:
            database: an empty one that spills.
            folder: where results are dealt out to.
            schema: the columns of a result that are wanted.
        """
        self._database, self._folder = database, folder
        self._schema = pa.schema([*schema, *_NEW])
        self._range = 1
        self._current = -1
        self._table = self._schema.empty_table()
        self._rows: Numbers = np.empty(0, np.int64)

    def deal(self, row_map: Path, rows: int, parts: Sequence[Path]) -> None:
        """Deals the results out to the rows.

        Args:
            row_map: row → custom_id, as Parquet; every custom_id may have several rows.
            rows: how many the map has.
            parts: result parts, oldest first.

        Raises:
            LedgerError: a part is damaged.
        """
        size = sum(_bytes_of(part, self._schema.names) for part in parts)
        files = min(_MOST_FILES, max(1, -(-size // _FILE_BYTES)))
        self._range = max(1, -(-rows // files))
        places = _Places(self._placed(row_map, parts))
        with ExitStack() as files_open:
            writers: dict[int, pa.ipc.RecordBatchStreamWriter] = {}
            for number in self._dealt(parts, places):
                for at, table in self._by_range(number):
                    if at not in writers:
                        writers[at] = files_open.enter_context(pa.ipc.new_stream(self._file(at), self._schema))
                    writers[at].write_table(table)

    def take(self, first: int, size: int) -> pa.Table:
        """Results of the rows from `first` on, with the number of attempts; nulls where a row has none.

        Rows are asked for in their order.
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
        table = self._schema.empty_table()
        if path.exists():
            with pa.ipc.open_stream(path) as stream:
                table = stream.read_all().combine_chunks()
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
                    columns = [*taken.columns, here["row"], here["attempts"]]
                    gathered.append(pa.RecordBatch.from_arrays(columns, schema=self._schema))
                    size += gathered[-1].nbytes
                at += batch.num_rows
                if size >= _FILE_BYTES:
                    yield pa.Table.from_batches(gathered)
                    gathered, size = [], 0
        if gathered:
            yield pa.Table.from_batches(gathered)

    def _placed(self, row_map: Path, parts: Sequence[Path]) -> Iterator[pa.RecordBatch]:
        """Part, row in the part, row of the dataset and number of attempts of every result that counts, by part."""
        self._database.execute("create table results (custom_id varchar, key bigint, n int)")
        self._database.execute("create table rows (row bigint, custom_id varchar)")
        self._insert("results", _keys(parts))
        self._insert("rows", read_batches(row_map, ["row", "custom_id"]))
        self._database.execute("""
            create table best as
            select custom_id, min(key) as key, arg_min(n, key) as n, count(*) as attempts
            from results group by custom_id
        """)
        self._database.execute("drop table results")
        found = self._database.sql(f"""
            select ({len(parts)} - 1 - key % {len(parts)})::int as part, n, row, attempts::int as attempts
            from rows join best using (custom_id) order by part, n, row
        """)  # noqa: S608 - a number
        yield from found.to_arrow_reader(_PLACES)

    def _insert(self, table: str, batches: Iterator[pa.RecordBatch]) -> None:
        gathered: list[pa.RecordBatch] = []

        def insert() -> None:
            self._database.register("gathered", pa.Table.from_batches(gathered))
            self._database.execute(f"insert into {table} select * from gathered")  # noqa: S608 - one of two names
            self._database.unregister("gathered")
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
