"""Reconciliation: the lines of a batch's files are sorted to its requests, and each request gets one verdict."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from overnight.answers.judge import absent_reply
from overnight.answers.lines import ResultLine, read_result
from overnight.answers.readers import answer_reader
from overnight.answers.responses import ResponseFiles, collected_files
from overnight.answers.results import missing_parts, part_name, result_schema, unmetered
from overnight.answers.verdicts import VERDICTS, Reply
from overnight.errors import LedgerError, Unreconciled
from overnight.job.answer import Answer
from overnight.job.prompt import answer_of
from overnight.ledger.request_files import whole_file
from overnight.ledger.run import Run
from overnight.limits.budget import batch_rates
from overnight.limits.prices import Rates, Written
from overnight.rows.lines import BUFFER_BYTES, custom_ids
from overnight.store.objects import forget
from overnight.store.parquet import TableWriter, write_parquet

logger = logging.getLogger("overnight.parse")

USAGE = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
WRITTEN = ("written_tokens", "written_hour_tokens")
"""To a cache: they are priced and counted, and have no column."""


_FLUSH_ROWS = 2048
"""Rows as Python tuples at one time: more are slower to turn into Arrow, and cost memory."""


_TOLD = ("finish_reason", "error_code", "error_message", "model", "input_tokens", "output_tokens", "cached_tokens",
         "service_tier", "reasoning_tokens")  # fmt: skip
"""Of a reply: as many columns, in their order."""
_RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}


@dataclass(frozen=True)
class Parsed:
    """What a batch came to."""

    others: dict[str, Reply]
    """Of every request that did not succeed."""
    counts: dict[str, int]
    """Requests by verdict: they sum to the shard's."""
    unreadable: int
    """Lines that are no result."""
    duplicates: int
    """Lines for a request that had one already."""
    foreign: int
    """Lines for requests that the shard does not have."""
    usage: dict[str, int]
    """Tokens of all answers."""
    service_tiers: dict[str, int]
    """Answers by the service tier that they name."""
    cost_usd: float
    """Of the answers whose tokens and price are known."""


class PartWriter:
    """Writes replies as rows of a result part."""

    def __init__(self, table: TableWriter, answer: Answer, batch_id: str | None, rates: Rates | None = None) -> None:
        self._table, self._schema, self._batch_id, self._rates = table, result_schema(answer), batch_id, rates
        self._blank = (None,) * len(answer.columns)
        self._extras = [extra.told for extra in answer.extras]
        self._ids: list[str] = []
        self._replies: list[Reply] = []
        self._raws: list[bytes | None] = []
        self.usage = Counter(dict.fromkeys([*USAGE, "unmetered"], 0))
        self.service_tiers: Counter[str] = Counter()
        self.cost_usd = 0.0
        self._largest = 0
        self.rows = 0

    @property
    def metered(self) -> dict[str, int]:
        """Tokens of all answers, and of the largest request."""
        return {**self.usage, "largest_input": self._largest}

    def add(self, custom_id: str, reply: Reply, raw: bytes | None) -> None:
        """Takes one reply."""
        self._ids.append(custom_id)
        self._replies.append(reply)
        self._raws.append(raw)
        if len(self._ids) >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows taken so far."""
        if not self._ids:
            return
        replies = self._replies
        fields = zip(*(reply.fields or self._blank for reply in replies), strict=True) if self._blank else ()
        columns = [
            self._ids,
            *(_told(replies, name) for name in ("verdict", "answer")),
            *fields,
            *(_told(replies, name) for name in (*self._extras, *_TOLD)),
        ]
        written = Written(*(np.array(_told(replies, name), float) for name in WRITTEN))
        types = self._schema.types
        arrays = [pa.array(column, types[at]) for at, column in enumerate(columns)]
        arrays += [
            self._costs(written, *(arrays[self._schema.get_field_index(name)] for name in USAGE[:3])),
            pa.repeat(pa.scalar(self._batch_id, pa.string()), len(replies)),
            _texts(self._raws),
        ]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        self._table.write(batch)
        self.rows += batch.num_rows
        self._meter(batch)
        self.usage.update({name: int(to.sum()) for name, to in zip(WRITTEN, written, strict=True) if to.any()})
        self._ids, self._replies, self._raws = [], [], []

    def _costs(self, written: Written, given: pa.Array, made: pa.Array, cached: pa.Array) -> pa.Array:
        """USD of each answer by its own tokens, at the rates that stood when it was asked for."""
        self._largest = max(self._largest, pc.max(given).as_py() or 0)
        if self._rates is None:
            return pa.nulls(len(given), pa.float64())
        tokens = [one.fill_null(0).to_numpy().astype(float) for one in (given, made, cached)]
        costs = self._rates.costs(tokens[0], tokens[1], tokens[2], written)
        told = pc.or_(given.is_valid(), made.is_valid())
        found = pc.if_else(told, pa.array(costs), None)
        self.cost_usd += pc.sum(found).as_py() or 0.0
        return found

    def _meter(self, batch: pa.RecordBatch) -> None:
        self.usage.update({name: pc.sum(batch[name]).as_py() or 0 for name in USAGE})
        self.usage["unmetered"] += pc.sum(unmetered(batch)).as_py() or 0
        for tier in pc.value_counts(batch["service_tier"].drop_null()).to_pylist():
            self.service_tiers[tier["values"]] += tier["counts"]


def _told(replies: list[Reply], name: str) -> list[Any]:
    return list(map(attrgetter(name), replies))


def _texts(raws: list[bytes | None]) -> pa.Array:
    """Bodies as text; a provider's bytes need not be UTF-8."""
    try:
        return pa.array(raws, pa.binary()).cast(pa.string())  # checks them at once: faster than one by one
    except pa.ArrowInvalid:
        return pa.array([raw.decode(errors="replace") if raw is not None else None for raw in raws], pa.string())


class Reconciler:
    """Sorts the lines of a batch's files to the requests of its shard."""

    def __init__(self, ids: Iterable[str], read: Callable[[ResultLine], Reply], part: PartWriter) -> None:
        self._known = frozenset(ids)
        self._open = set(self._known)
        self._read, self._part = read, part
        self._held: dict[str, tuple[Reply, bytes]] = {}
        self._unreadable = self._duplicates = self._foreign = 0

    def take(self, lines: Iterable[bytes]) -> None:
        """Reads a file. Successes are written at once; others are held, since a later line may be better."""
        for line in lines:
            try:
                result = read_result(line)
            except ValueError:
                self._unreadable += not line.isspace()
                continue
            self._sort(result, line)

    def _sort(self, result: ResultLine, line: bytes) -> None:
        custom_id = result.custom_id
        if custom_id not in self._open:
            if custom_id in self._known:
                self._duplicates += 1
            else:
                self._foreign += 1
            return
        reply = self._read(result)
        if self._held and custom_id in self._held:
            self._duplicates += 1
            if reply.verdict == "succeeded":
                del self._held[custom_id]
        if reply.verdict == "succeeded":
            self._open.remove(custom_id)
            self._part.add(custom_id, reply, result.body)
        # An error line may come before a success of the same request, in the other file: only a better one replaces it.
        elif custom_id not in self._held or _RANK[reply.verdict] < _RANK[self._held[custom_id][0].verdict]:
            self._held[custom_id] = (reply, result.body or line.rstrip(b"\n"))

    def finish(self, absent: Callable[[str], Reply]) -> Parsed:
        """Writes the verdicts of all other requests; `absent` judges those without a line.

        Raises:
            Unreconciled: the verdicts do not add up to the shard's requests.
        """
        counts: Counter[str] = Counter({"succeeded": len(self._known) - len(self._open)})
        others: dict[str, Reply] = {}
        for custom_id in sorted(self._open):
            reply, raw = self._held.get(custom_id) or (absent(custom_id), None)
            self._part.add(custom_id, reply, raw)
            counts[reply.verdict] += 1
            others[custom_id] = reply
        self._part.flush()
        if self._part.rows != len(self._known):
            raise Unreconciled(f"{len(self._known)} requests were sent, {self._part.rows} have a verdict")
        kept: dict[str, int] = {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}
        return Parsed(others, kept, self._unreadable, self._duplicates, self._foreign,
                      self._part.metered, dict(self._part.service_tiers), self._part.cost_usd)  # fmt: skip


def reconcile(
    files: ResponseFiles, request_file: Path, part: Path, answer: Answer, rates: Rates | None = None
) -> Parsed:
    """Reads a batch's files into a result part, with one row for every request of its shard."""
    ids = list(custom_ids(request_file))
    with write_parquet(part, result_schema(answer)) as table:
        reconciler = Reconciler(ids, answer_reader(answer), PartWriter(table, answer, files.batch.batch_id, rates))
        for path in (files.output, files.error):
            if path is not None:
                with path.open("rb", BUFFER_BYTES) as lines:
                    reconciler.take(lines)
        return reconciler.finish(absent_reply(files.batch, ids))


def restore_parts(run: Run) -> None:
    """Makes result parts anew that are gone, from what the provider sent back.

    Raises:
        LedgerError: that is gone too, or comes to other verdicts than it did.
    """
    folder = run.folder
    for shard, batch in missing_parts(folder.results, run.ledger.shards(run.job.name)):
        part = folder.results / part_name(shard, batch)
        files = collected_files(folder.responses, batch)
        request_file = whole_file(folder, shard, run.job.profile)
        rates = batch_rates(run.job, shard, batch)
        parsed = reconcile(files, request_file, part, answer_of(run.job), rates)
        if parsed.counts != batch.verdicts:
            forget(part)
            raise LedgerError(
                f"{part} is missing, and {folder.responses} gives other verdicts ({parsed.counts}) than were collected "
                f"({batch.verdicts}): restore both from a backup"
            )
        logger.warning("%s was missing: made anew from responses/", part.name)
