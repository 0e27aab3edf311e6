"""The rows that were built, and the map from them to their requests: what the join puts answers beside."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from overnight.errors import DatasetError, LedgerError, Unreconciled
from overnight.ledger.records import JobRecord
from overnight.ledger.run import Run
from overnight.rows.requests import request_source
from overnight.rows.tables import ROWS
from overnight.store.objects import is_there
from overnight.store.parquet import open_parquet


def built_map(run: Run, record: JobRecord) -> Path:
    """The map of rows that belongs to the last build; one that a killed process left staged is moved into place.

    Raises:
        LedgerError: it is gone, or another build's.
    """
    place = run.folder.rows(record.build)
    for path in (place, run.folder.staging / "rows.parquet"):
        if is_there(path):
            with open_parquet(path) as opened:
                about = opened.schema_arrow.metadata or {}
            mine = about.get(b"build", b"").decode() == record.build if record.build else path == place
            if mine and about.get(b"fingerprint", b"").decode() == record.fingerprint:
                return path if path == place else path.replace(place)
    raise LedgerError(f"the map of rows of {run.job.name!r} is gone, or of another build: run the job again")


class BuiltRows:
    """The rows of a dataset that were built, in their order; each is checked where the files changed since."""

    def __init__(self, run: Run, record: JobRecord) -> None:
        """Opens the dataset as it is now.

        Args:
            run: the job.
            record: its last build.
        """
        self._run, self._record = run, record
        self.rows = run.rows()
        self._same = self.rows.fingerprint == record.fingerprint != ""
        self._source = None if self._same else request_source(run.job, self.rows.schema)
        self.new_rows = 0
        """Rows that came since, once all were read."""

    def batches(self, row_map: RowMap) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
        """Batches of rows with what the map says of them.

        Raises:
            DatasetError: a row is another than it was, or the files changed while they were read: answers would stand
                beside the wrong rows.
        """
        read = 0
        for batch in self.rows.batches():
            built = batch.slice(0, max(0, self._record.rows - read))
            self.new_rows += batch.num_rows - built.num_rows
            if built.num_rows:
                mapped = row_map.take(built.num_rows)
                self._check(built, mapped, read)
                yield built, mapped
            read += built.num_rows
        if self._run.rows().fingerprint != self.rows.fingerprint:
            raise DatasetError(f"the dataset {self._where} changed while it was joined: collect or run the job again")
        if read < self._record.rows:
            raise DatasetError(f"the dataset {self._where} has {read:,} of the {self._record.rows:,} rows that were "
                               "built: run the job again")  # fmt: skip

    @property
    def _where(self) -> str:
        return self._run.job.dataset.name

    def _check(self, rows: pa.RecordBatch, mapped: pa.RecordBatch, first: int) -> None:
        if self._source is None:
            return
        requests = self._source(rows, first)
        now = [None if at in requests.errors else custom_id for at, custom_id in enumerate(requests.ids)]
        for at, (is_now, was) in enumerate(zip(now, mapped["custom_id"].to_pylist(), strict=True)):
            if is_now != was:
                raise DatasetError(
                    f"the dataset {self._where} changed while the job was under way: row {first + at + 1} makes "
                    "another request now. Run the job again; requests that have their answer are not sent again"
                )


class RowMap:
    """The map of rows, read in pieces of any size."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._rest = pa.Table.from_batches([], ROWS)

    def take(self, size: int) -> pa.RecordBatch:
        """The next `size` rows.

        Raises:
            Unreconciled: the map has fewer.
        """
        while self._rest.num_rows < size:
            if (more := next(self._batches, None)) is None:
                raise Unreconciled("the dataset has more rows than were built: run the job again")
            self._rest = pa.concat_tables([self._rest, pa.Table.from_batches([more]).replace_schema_metadata()])
        taken, self._rest = self._rest.slice(0, size), self._rest.slice(size)
        return pa.RecordBatch.from_arrays([column.combine_chunks() for column in taken.columns], schema=ROWS)
