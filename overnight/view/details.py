"""Opened rows: what was sent for each, and every attempt with its raw reply."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from overnight.answers.results import part_name
from overnight.errors import JobError
from overnight.ledger.records import Batch, Shard
from overnight.ledger.request_files import request_path
from overnight.ledger.run import Run
from overnight.reports.diagnosis import advice
from overnight.rows.lines import BUFFER_BYTES, custom_id_of
from overnight.store.objects import is_there
from overnight.store.table import FILE, NUMBER, columns_of, opened, quoted
from overnight.text import when

_PLAIN = frozenset({"BIGINT", "INTEGER", "DOUBLE", "BOOLEAN"})
_MOST_RAW = 200_000
"""Characters of a raw reply."""
_TOLD = ("verdict", "error_code", "error_message", "finish_reason", "model", "input_tokens", "output_tokens",
         "cost_usd", "raw")  # fmt: skip
Attempt = tuple[Shard, Batch]


def details(run: Run, numbers: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of the joined table with all of their cells, their requests, and their attempts, the oldest first.

    Args:
        run: the job.
        numbers: of the rows, from 0.

    Raises:
        JobError: a row is not there.
    """
    prefix = run.job.output.prefix
    cells = _cells(run, numbers)
    named: dict[int, str] = {number: row.get(f"{prefix}custom_id") or "" for number, row in cells.items()}
    results = _results(run, set(named.values()) - {""})
    sent: dict[Path, set[str]] = defaultdict(set)
    for custom_id, tried in results.items():
        for (shard, _), _ in tried:
            sent[request_path(run.folder, shard)].add(custom_id)
    requests: dict[str, Any] = {}
    for file, wanted in sent.items():
        requests |= _requests(file, wanted - set(requests))
    return [
        {
            "row": number,
            "cells": row,
            "request": requests.get(named[number]),
            "attempts": [_told(*attempt, result) for attempt, result in results.get(named[number], [])],
            "advice": advice(code) if (code := row[f"{prefix}error_code"]) else "",
        }
        for number, row in cells.items()
    ]


def _cells(run: Run, numbers: Sequence[int]) -> dict[int, dict[str, Any]]:
    with opened(run.folder.joined) as database:
        kinds = columns_of(database)
        named = [quoted(name) if kind in _PLAIN else f"{quoted(name)}::varchar" for name, kind in kinds.items()]
        listed = ", ".join(map(str, numbers))
        between = f"{NUMBER} between {min(numbers)} and {max(numbers)} and {NUMBER} in ({listed})"
        query = f"select {NUMBER}, {', '.join(named)} from joined where {between} order by 1"  # noqa: S608 - numbers and quoted names
        found = {row[0]: dict(zip(kinds, row[1:], strict=True)) for row in database.execute(query).fetchall()}
    if absent := set(numbers) - set(found):
        raise JobError(f"there is no row {min(absent) + 1:,}")
    return found


def _results(run: Run, ids: set[str]) -> dict[str, list[tuple[Attempt, dict[str, Any]]]]:
    """The collected attempts of requests: one look at the ids of all parts, and one at those that hold some."""
    by_part = {
        str(part): (shard, batch)
        for shard in run.ledger.shards(run.job.name)
        for batch in shard.batches
        if (part := run.folder.results / part_name(shard, batch)) and is_there(part)
    }
    found: dict[str, list[tuple[Attempt, dict[str, Any]]]] = defaultdict(list)
    if not by_part or not ids:
        return found
    asked, marks = sorted(ids), ", ".join("?" * len(ids))
    with opened(*map(Path, by_part)) as database:
        query = f"select distinct {FILE} from joined where custom_id in ({marks})"  # noqa: S608 - names of ours
        holding = {row[0] for row in database.execute(query, asked).fetchall()}
    for path, attempt in by_part.items():
        if path in holding:
            with opened(Path(path)) as database:
                kept = [name for name in _TOLD if name in columns_of(database)]
                query = f"select custom_id, {', '.join(kept)} from joined where custom_id in ({marks})"  # noqa: S608 - the same
                for custom_id, *values in database.execute(query, asked).fetchall():
                    found[custom_id].append((attempt, dict(zip(kept, values, strict=True))))
    return found


def _told(shard: Shard, batch: Batch, result: dict[str, Any]) -> dict[str, Any]:
    raw = result.get("raw")
    took = batch.ended_at - batch.submitted_at if batch.ended_at and batch.submitted_at else None
    return {
        **result, "attempt": shard.attempt, "file": shard.file_name, "batch": batch.batch_id,
        "submitted": when(batch.submitted_at), "ended": when(batch.ended_at), "seconds": took,
        "raw": raw[:_MOST_RAW] if raw else None,
    }  # fmt: skip


def _requests(path: Path, wanted: set[str]) -> dict[str, Any]:
    """The bodies of requests as they were sent; without those whose request file is gone."""
    found: dict[str, Any] = {}
    if not wanted or not is_there(path):
        return found
    with path.open("rb", BUFFER_BYTES) as lines:
        for line in lines:
            if (custom_id := custom_id_of(line)) in wanted:
                found[custom_id] = json.loads(line).get("body")
                if len(found) == len(wanted):
                    break
    return found
