"""Result parts: one row per request per attempt, and the index that finds the row that counts."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from overnight.answers.verdicts import SETTLED, VERDICTS
from overnight.errors import LedgerError
from overnight.job.answer import Answer
from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.rows.ids import Hashes, Mask, id_hashes
from overnight.store.parquet import check_rows, open_parquet, read_batches

_CACHE_BYTES = 16 << 20
"""Row groups kept in memory: rows of one export order come from a few groups at a time."""
_SORTED_AT_ONCE = 250_000
"""Ids in one sort: 20 MB of arrays, whatever the number of results."""
_LEAST, _MOST = -(2**63), 2**63 - 1
Numbers = npt.NDArray[np.int32]


def result_schema(answer: Answer) -> pa.Schema:
    """Columns of a result part. `raw` is the response's body (or the whole line where it failed), as it came."""
    return pa.schema(
        [
            pa.field("custom_id", pa.string(), nullable=False),
            pa.field("verdict", pa.string(), nullable=False),
            pa.field("answer", answer.type),
            *(pa.field(f"answer_{column.name}", column.type) for column in answer.columns),
            pa.field("finish_reason", pa.string()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("model", pa.string()),
            pa.field("input_tokens", pa.int64()),
            pa.field("output_tokens", pa.int64()),
            pa.field("cached_tokens", pa.int64()),
            pa.field("service_tier", pa.string()),
            pa.field("cost_usd", pa.float64()),
            pa.field("batch_id", pa.string()),
            pa.field("raw", pa.string()),
        ]
    )


def part_name(shard: Shard, batch: Batch) -> str:
    """The file of an attempt's results; the names sort as the attempts were made."""
    return f"{shard.round:04d}-{shard.number:04d}-{batch.id:06d}.parquet"


def unmetered(rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """Which results hold an answer whose tokens the provider does not tell: what it cost is not known."""
    answered = pa.compute.is_in(rows["verdict"], value_set=pa.array(["succeeded", "invalid", "refused"]))
    untold = pa.compute.and_(pa.compute.is_null(rows["input_tokens"]), pa.compute.is_null(rows["output_tokens"]))
    return pa.compute.and_(answered, untold)


def missing_parts(folder: Path, shards: Sequence[Shard]) -> list[tuple[Shard, Batch]]:
    """Attempts that the ledger knows as collected, whose results are not there."""
    collected = [(shard, b) for shard in shards for b in shard.batches if b.state is State.COLLECTED]
    return [(shard, batch) for shard, batch in collected if not (folder / part_name(shard, batch)).exists()]


def result_parts(folder: Path, shards: Sequence[Shard]) -> list[Path]:
    """All result parts of a job, oldest first.

    Raises:
        LedgerError: there are fewer, others, or shorter ones than the ledger knows: requests would be paid for twice.
    """
    if missing := missing_parts(folder, shards):
        names = ", ".join(part_name(*one) for one in missing[:5])
        raise LedgerError(f"{folder} lacks {names}, which was collected: run the job, it is made anew from responses/")
    parts = sorted(folder.glob("*.parquet"))
    known = {part_name(shard, batch) for shard in shards for batch in shard.batches}
    if strange := [part.name for part in parts if part.name not in known]:
        raise LedgerError(
            f"{folder} has {', '.join(strange[:5])}, which the ledger does not know: it is older than the results, or "
            "another one. Restore the ledger that belongs to them"
        )
    for shard in shards:
        for batch in shard.batches:
            if batch.state is State.COLLECTED:
                part = folder / part_name(shard, batch)
                check_rows(part, row_count(part), shard.requests)
    return parts


def settled_ids(parts: Sequence[Path], *, resubmit_lost: bool) -> list[Hashes]:
    """Hashes of the requests that need not, or may not, be sent again.

    Args:
        parts: of a job.
        resubmit_lost: whether requests of a lost batch may be: they may have been paid.
    """
    kept = pa.array(sorted(SETTLED))
    found: list[Hashes] = []
    for part in parts:
        for batch in read_batches(part, ["custom_id", "verdict", "error_code"]):
            held = pc.fill_null(pc.equal(batch["error_code"], "batch_lost"), False)
            final = pc.is_in(batch["verdict"], value_set=kept)
            settled = batch.filter(final if resubmit_lost else pc.or_(final, held))
            if settled.num_rows:
                found.append(id_hashes(settled["custom_id"].to_pylist()))
    return found


class Found(NamedTuple):
    """Where the results of some ids are: arrays of their length."""

    part: Numbers
    row: Numbers
    """Row within the part."""
    attempts: Numbers
    """How often the request was sent."""
    present: Mask
    """Whether there is any result."""


class ResultIndex:
    """Finds, for each custom_id, the result that counts: the best verdict, and of equals the latest.

    Holds 20 bytes per request; the results themselves are read as they are asked for. It is built a range of hashes at
    a time, so that sorting takes no more memory for many results than for few.
    """

    def __init__(self, parts: Sequence[Path]) -> None:
        self._parts = list(parts)
        total = sum(row_count(part) for part in self._parts)
        bounds = np.linspace(_LEAST, _MOST, max(1, round(total / _SORTED_AT_ONCE)) + 1)[1:-1].astype(np.int64)
        ranges = [self._range(low, high) for low, high in pairwise([_LEAST, *bounds.tolist(), _MOST])]
        self._hashes, self._part, self._row, self._attempts = map(np.concatenate, zip(*ranges, strict=True))

    def __len__(self) -> int:
        return len(self._hashes)

    def _range(self, low: int, high: int) -> tuple[Hashes, Numbers, Numbers, Numbers]:
        """Hashes in a range, sorted, with part, row and number of attempts of each."""
        hashes, ranks, parts, rows = self._scan(low, high)
        order = np.lexsort((-parts, ranks, hashes))
        hashes = hashes[order]
        first = np.ones(len(hashes), dtype=np.bool_)
        first[1:] = hashes[1:] != hashes[:-1]
        starts = np.flatnonzero(first)
        attempts = np.diff(np.append(starts, len(hashes))).astype(np.int32)
        best = order[starts]
        return hashes[starts], parts[best], rows[best], attempts

    def _scan(self, low: int, high: int) -> tuple[Hashes, Numbers, Numbers, Numbers]:
        rank = {verdict: place for place, verdict in enumerate(VERDICTS)}
        found: list[tuple[Hashes, Numbers, Numbers, Numbers]] = []
        for number, part in enumerate(self._parts):
            at = 0
            for batch in read_batches(part, ["custom_id", "verdict"]):
                hashes = id_hashes(batch["custom_id"].to_pylist())
                mine = np.flatnonzero((hashes >= low) & ((hashes < high) | (high == _MOST)))
                ranks = np.fromiter(map(rank.__getitem__, batch["verdict"].to_pylist()), np.int32, batch.num_rows)
                row = (at + mine).astype(np.int32)
                found.append((hashes[mine], ranks[mine], np.full(len(mine), number, np.int32), row))
                at += batch.num_rows
        none = np.empty(0, np.int32)
        columns = zip(*found, strict=True) if found else ((none.astype(np.int64),), (none,), (none,), (none,))
        hashes, ranks, parts, rows = map(np.concatenate, columns)
        return hashes, ranks, parts, rows

    def find(self, custom_ids: Sequence[str]) -> Found:
        """Looks ids up."""
        hashes = id_hashes(custom_ids)
        if not len(self._hashes):
            none = np.zeros(len(hashes), dtype=np.int32)
            return Found(none, none, none, none.astype(np.bool_))
        at = np.minimum(np.searchsorted(self._hashes, hashes), len(self._hashes) - 1)
        return Found(self._part[at], self._row[at], self._attempts[at], self._hashes[at] == hashes)


def row_count(part: Path) -> int:
    """Rows of a part, as its footer says."""
    with open_parquet(part) as opened:
        return int(opened.metadata.num_rows)


class ResultReader:
    """Reads single rows of result parts, a row group at a time, keeping the last few in memory."""

    def __init__(self, parts: Sequence[Path], schema: pa.Schema) -> None:
        self._parts = list(parts)
        self._schema = schema
        self._groups: dict[int, npt.NDArray[np.int64]] = {}
        self._cache: OrderedDict[tuple[int, int], pa.Table] = OrderedDict()

    def take(self, found: Found) -> pa.Table:
        """The rows of `found`, in its order, with the reader's schema; nulls where there is no result."""
        part, row = np.where(found.present, found.part, -1), found.row
        group, within = np.zeros(len(part), np.int64), row.astype(np.int64)
        for number in np.unique(part[found.present]).tolist():
            mine = part == number
            bounds = self._bounds(number)
            group[mine] = np.searchsorted(bounds, row[mine], side="right") - 1
            within[mine] = row[mine] - bounds[group[mine]]
        pieces, places = [], []
        for number, one in sorted(set(zip(part[found.present].tolist(), group[found.present].tolist(), strict=True))):
            mine = np.flatnonzero((part == number) & (group == one))
            pieces.append(self._group(number, one).take(pa.array(within[mine])))
            places.append(mine)
        return self._in_order(pieces, places, len(part))

    def _in_order(self, pieces: list[pa.Table], places: list[npt.NDArray[np.int64]], size: int) -> pa.Table:
        """Puts the pieces' rows at their places; a place that none has is null."""
        table = pa.concat_tables([self._schema.empty_table(), *pieces]).combine_chunks()
        back = np.full(size, -1, np.int64)
        if places:
            at = np.concatenate(places)
            back[at] = np.arange(len(at))
        return table.take(pa.array(back, mask=back < 0))

    def _bounds(self, part: int) -> npt.NDArray[np.int64]:
        """First row of each row group."""
        if part not in self._groups:
            with open_parquet(self._parts[part]) as opened:
                sizes = [opened.metadata.row_group(n).num_rows for n in range(opened.num_row_groups)]
            self._groups[part] = np.cumsum([0, *sizes[:-1]]).astype(np.int64)
        return self._groups[part]

    def _group(self, part: int, group: int) -> pa.Table:
        key = (part, group)
        if key not in self._cache:
            with open_parquet(self._parts[part]) as opened:
                names = [name for name in self._schema.names if name in opened.schema_arrow.names]
                table = opened.read_row_group(group, columns=names, use_threads=False)
            self._cache[key] = pa.table(
                [
                    table[f.name].cast(f.type) if f.name in names else pa.nulls(table.num_rows, f.type)
                    for f in self._schema
                ],
                schema=self._schema,
            )
            while sum(kept.nbytes for kept in self._cache.values()) > _CACHE_BYTES and len(self._cache) > 1:
                self._cache.popitem(last=False)
        self._cache.move_to_end(key)
        return self._cache[key]
