"""How answers agree with what was expected: the confusion matrix, the rows that differ, agreement by confidence."""

from __future__ import annotations

from typing import Any, NamedTuple

from overnight.ledger.run import Run
from overnight.reports.look import Look, usual_columns
from overnight.store.table import columns_of, one, opened, quoted

MOST_VALUES = 12
"""Of a confusion matrix that can be read."""
_BINS = 10


class Pair(NamedTuple):
    """An expected answer, a given one, and how many rows have the two."""

    expected: str
    answer: str
    rows: int


class Step(NamedTuple):
    """Answers of about the same confidence, and how many of them agree."""

    low: float
    """Of the probability, which goes from 0 to 1."""
    rows: int
    agreed: int


class Agreement(NamedTuple):
    """Answers beside the column `report.compare`."""

    compared: int
    """Rows with an answer and an expected one."""
    agreed: int
    confusion: list[Pair]
    """Empty where there are too many different answers for a table."""
    differing: Look
    """The first rows that differ."""
    confidence: list[Step]
    """Empty where the job asks for no probabilities (`logprobs`)."""


def agreement(run: Run, limit: int = 5) -> Agreement | None:
    """Compares a joined table with what was expected; None where the job names no column, or the table lacks it.

    Args:
        run: the job.
        limit: how many differing rows.
    """
    expected, prefix = run.job.report.compare, run.job.output.prefix
    status, answer, probability = (prefix + name for name in ("status", "answer", "answer_probability"))
    with opened(run.folder.joined) as database:
        kinds = columns_of(database)
        if expected is None or expected not in kinds or answer not in kinds:
            return None
        both = f"from joined where {quoted(status)} = 'succeeded' and {quoted(expected)} is not null"
        left, right = (f"{quoted(name)}::varchar" for name in (expected, answer))
        agrees = f"count_if({left} is not distinct from {right})"
        compared, agreed = one(database, f"select count(*), {agrees} {both}")
        counted = f"select {left}, {right}, count(*) {both} group by 1, 2 order by 1, 2 limit {MOST_VALUES**2 + 1}"
        pairs = database.execute(counted).fetchall()
        few = all(len({pair[side] for pair in pairs}) <= MOST_VALUES for side in (0, 1))
        names = [name for name in usual_columns(run) if name not in (status, prefix + "error_code")]
        shown, wrong = ", ".join(map(quoted, names)), f"{both} and {left} is distinct from {right}"
        rows: list[tuple[Any, ...]] = database.execute(
            f"select {shown} {wrong} order by file_row_number limit {int(limit)}"
        ).fetchall()
        steps: list[tuple[float, int, int]] = []
        if probability in kinds:
            step, known = f"least(floor({quoted(probability)} * {_BINS}), {_BINS - 1}) / {_BINS}", quoted(probability)
            grouped = f"select {step}, count(*), {agrees} {both} and {known} is not null group by 1 order by 1"
            steps = database.execute(grouped).fetchall()
    return Agreement(
        compared, agreed, [Pair(*pair) for pair in pairs] if few else [],
        Look(names, rows, compared - agreed, compared), [Step(*step) for step in steps],
    )  # fmt: skip
