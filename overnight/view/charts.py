"""What a joined table says as a whole: counts and histograms, which the page draws."""

from __future__ import annotations

from collections import Counter
from typing import Any

from overnight.ledger.records import Batch
from overnight.ledger.run import Run
from overnight.reports.agreement import agreement
from overnight.reports.diagnosis import advice
from overnight.reports.look import overview
from overnight.store.objects import is_there
from overnight.store.table import columns_of, one, opened, quoted

_BINS = 24
_MOST_VALUES = 12
_MOST_POINTS = 300
_NUMBERS = ("INTEGER", "BIGINT", "DOUBLE", "FLOAT")


def charts(run: Run) -> dict[str, Any]:
    """Distributions of a job's table: statuses, answers, typed fields, lengths, tokens, cost, errors, agreement.

    A job that has no table yet has what came in so far.
    """
    if not is_there(run.folder.joined):
        return {"progress": progress(run)}
    table, prefix = run.folder.joined, run.job.output.prefix
    seen = overview(table, prefix)
    with opened(table) as database:
        kinds = columns_of(database)
        fields = [
            name
            for name in kinds
            if name.startswith((f"{prefix}answer_", f"{prefix}answer@")) and "reasoning" not in name
        ]
        return {
            "statuses": [one_._asdict() for one_ in seen.statuses],
            "answers": [one_._asdict() for one_ in seen.answers],
            "errors": [
                {"code": code, "rows": rows, "message": why, "advice": advice(code)} for code, rows, why in seen.errors
            ],
            "fields": {name: _field(database, name, kinds[name]) for name in fields},
            "histograms": {
                title: _histogram(database, expression)
                for title, expression in _measures(prefix, kinds).items()
            },
            **_compared(run),
            "progress": progress(run),
        }  # fmt: skip


def progress(run: Run) -> list[dict[str, Any]]:
    """Requests by verdict as their batches ended: cumulative, in the order of time, from the first that was sent."""
    batches = [batch for shard in run.ledger.shards(run.job.name) for batch in shard.batches if batch.submitted_at]
    counted: Counter[str] = Counter()
    points: list[dict[str, Any]] = (
        [{"at": min(batch.submitted_at or 0 for batch in batches), "verdicts": {}}] if batches else []
    )
    for batch in sorted((batch for batch in batches if batch.ended_at and batch.verdicts), key=_ended):
        counted.update(batch.verdicts or {})
        points.append({"at": _ended(batch), "verdicts": dict(counted)})
    step = -(-len(points) // _MOST_POINTS)
    return points[:-1:step] + points[-1:] if points else []


def _ended(batch: Batch) -> float:
    return batch.ended_at or 0.0


def _measures(prefix: str, kinds: dict[str, str]) -> dict[str, str]:
    """What is measured of each row, as SQL."""
    measures = {"cost of a row, USD": quoted(f"{prefix}cost_usd"), "input tokens": quoted(f"{prefix}input_tokens"),
                "output tokens": quoted(f"{prefix}output_tokens")}  # fmt: skip
    measures = {"length of an answer, characters": f"length({quoted(prefix + 'answer')})", **measures}
    named = {"length of an answer, characters": "answer", "cost of a row, USD": "cost_usd"}
    return {
        title: expression
        for title, expression in measures.items()
        if prefix + named.get(title, title.replace(" ", "_")) in kinds
    }


def _field(database: Any, name: str, kind: str) -> dict[str, Any]:
    """A typed field: a histogram of numbers, the commonest of other values."""
    if kind.startswith(_NUMBERS) and "[" not in kind:
        return {"histogram": _histogram(database, quoted(name))}
    values = database.execute(
        f"select {quoted(name)}::varchar, count(*) as n from joined where {quoted(name)} is not null "  # noqa: S608 - a quoted name
        f"group by 1 order by n desc, 1 limit {_MOST_VALUES}"
    ).fetchall()
    return {"values": [{"value": value, "rows": rows} for value, rows in values]}


def _histogram(database: Any, expression: str) -> list[dict[str, float]]:
    """Equal bins between the least and the greatest value; one where all are the same."""
    ends = f"select min({expression}), max({expression}), count({expression}) from joined"  # noqa: S608 - of quoted names
    lowest, highest, rows = one(database, ends)
    if not rows:
        return []
    low, high = float(lowest), float(highest)
    if low == high:
        return [{"from": low, "to": high, "rows": rows}]
    width = (high - low) / _BINS
    whole = isinstance(lowest, int) and width < 1
    width = 1.0 if whole else width
    found = dict(database.execute(
        f"select least(floor(({expression} - {low!r}) / {width!r}), {_BINS - 1})::int, count(*) from joined "  # noqa: S608 - the same
        f"where {expression} is not null group by 1"
    ).fetchall())  # fmt: skip
    last = max(found)
    return [
        {"from": low + at * width, "to": low + (at + 1) * width, "rows": found.get(at, 0)} for at in range(last + 1)
    ]


def _compared(run: Run) -> dict[str, Any]:
    """Expected and given answers, where the job compares them and there are few; agreement by confidence."""
    found = agreement(run, limit=0)
    return {
        "confusion": [pair._asdict() for pair in found.confusion] if found else [],
        "confidence": [step._asdict() for step in found.confidence] if found else [],
    }
