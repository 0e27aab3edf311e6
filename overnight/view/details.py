"""One row: what was sent for it, and every attempt with its raw reply."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import Any

from overnight.answers.results import part_name
from overnight.errors import JobError
from overnight.ledger.records import Batch, Shard
from overnight.ledger.run import Run
from overnight.reports.diagnosis import advice
from overnight.store.table import FILE, columns_of, one, opened, quoted
from overnight.text import when

_PLAIN = frozenset({"BIGINT", "INTEGER", "DOUBLE", "BOOLEAN"})
_MOST_RAW = 200_000
"""Characters of a raw reply."""


def details(run: Run, row: int) -> dict[str, Any]:
    """A row of the joined table with all of its cells, its request, and its attempts, the oldest first.

    Raises:
        JobError: there is no such row.
    """
    with opened(run.folder.joined) as database:
        kinds = columns_of(database)
        named = [quoted(name) if kind in _PLAIN else f"{quoted(name)}::varchar" for name, kind in kinds.items()]
        found = one(database, f"select {', '.join(named)} from joined where file_row_number = ?", [row])  # noqa: S608 - quoted names
    if not found:
        raise JobError(f"there is no row {row + 1:,}")
    cells = dict(zip(kinds, found, strict=True))
    custom_id = cells[f"{run.job.output.prefix}custom_id"]
    tried = _attempts(run, custom_id) if custom_id else []
    code = cells[f"{run.job.output.prefix}error_code"]
    return {
        "row": row,
        "cells": cells,
        "request": next((body for shard, _ in tried if (body := _request(run, shard, custom_id)) is not None), None),
        "attempts": [_told(run, shard, batch, custom_id) for shard, batch in tried],
        "advice": advice(code) if code else "",
    }


def _attempts(run: Run, custom_id: str) -> list[tuple[Shard, Batch]]:
    """The collected attempts of a request: one look at the ids of all parts."""
    by_part = {
        str(part): (shard, batch)
        for shard in run.ledger.shards(run.job.name)
        for batch in shard.batches
        if (part := run.folder.results / part_name(shard, batch)).exists()
    }
    if not by_part:
        return []
    with opened(*map(Path, by_part)) as database:
        query = f"select {FILE} from joined where custom_id = ?"  # noqa: S608 - a name of ours
        found = database.execute(query, [custom_id]).fetchall()
    holding = {row[0] for row in found}
    return [attempt for part, attempt in by_part.items() if part in holding]


def _result(part: Path, custom_id: str) -> dict[str, Any] | None:
    names = ["verdict", "error_code", "error_message", "finish_reason", "model", "input_tokens", "output_tokens",
             "cost_usd", "raw"]  # fmt: skip
    with opened(part) as database:
        there = columns_of(database)
        kept = [name for name in names if name in there]
        found = one(database, f"select {', '.join(map(quoted, kept))} from joined where custom_id = ?", [custom_id])  # noqa: S608 - names of ours
    return dict(zip(kept, found, strict=True)) if found else None


def _told(run: Run, shard: Shard, batch: Batch, custom_id: str) -> dict[str, Any]:
    result = _result(run.folder.results / part_name(shard, batch), custom_id) or {}
    raw = result.pop("raw", None)
    took = (batch.ended_at or 0) - (batch.submitted_at or 0) if batch.ended_at and batch.submitted_at else None
    return {
        **result, "attempt": shard.attempt, "file": shard.file_name, "batch": batch.batch_id,
        "submitted": when(batch.submitted_at), "ended": when(batch.ended_at), "seconds": took,
        "raw": raw[:_MOST_RAW] if raw else None,
    }  # fmt: skip


def _request(run: Run, shard: Shard, custom_id: str) -> Any:
    """The body of a request as it was sent; None where the request file is gone."""
    path = run.folder.requests / shard.file_name
    if not path.exists() or not path.stat().st_size:
        return None
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as lines:
        at = lines.find(b'"custom_id":%b' % json.dumps(custom_id).encode())
        if at < 0:
            return None
        start, end = lines.rfind(b"\n", 0, at) + 1, lines.find(b"\n", at)
        return json.loads(lines[start : end if end >= 0 else len(lines)]).get("body")
