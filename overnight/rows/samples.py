"""A few rows picked at random while all of them stream past, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from overnight.job.cells import values_of
from overnight.job.job import Job
from overnight.job.prompt import compile_prompt
from overnight.job.task import Raw
from overnight.text import inline, table

_MOST_CHARACTERS = 400
_SEED = 20_26


class Reservoir:
    """Keeps `size` rows of a stream, each as likely as any other; the same rows for the same stream."""

    def __init__(self, size: int, columns: Sequence[str]) -> None:
        self._size, self._columns = size, list(columns)
        self._random = np.random.default_rng(_SEED)
        self._kept: list[tuple[float, dict[str, Any]]] = []

    def take(self, batch: pa.RecordBatch) -> None:
        """Looks at the next rows."""
        if not self._size or not batch.num_rows:
            return
        draws = self._random.random(batch.num_rows)
        bound = self._kept[-1][0] if len(self._kept) == self._size else 1.0
        at = np.flatnonzero(draws < bound)
        at = at[np.argsort(draws[at])][: self._size]
        taken = batch.select(self._columns).take(pa.array(at))
        columns = [values_of(column) for column in taken.columns]
        rows = [dict(zip(self._columns, values, strict=True)) for values in zip(*columns, strict=True)]
        self._kept = sorted([*self._kept, *zip(draws[at].tolist(), rows, strict=True)], key=lambda one: one[0])
        del self._kept[self._size :]

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The rows kept so far, as column: value."""
        return [row for _, row in self._kept]


def input_columns(job: Job, schema: pa.Schema) -> list[str]:
    """The columns of the dataset that tell what was asked: the key, then those in the prompt."""
    if isinstance(job.task, Raw):
        asked = [job.task.body] if job.task.body else ["line", "request"]
    else:
        asked = list(compile_prompt(job, schema).columns)
    return list(dict.fromkeys([*job.dataset.key, *asked]))


def samples_text(job: str, answered: Sequence[dict[str, Any]], failed: Sequence[dict[str, Any]]) -> str:
    """The samples in Markdown: some rows with their answers, some without."""
    parts = [f"# Samples of {job}", "Rows picked at random."]
    for title, rows in (("Answered", answered), ("Without an answer", failed)):
        if rows:
            cells = [[_short(value) for value in row.values()] for row in rows]
            parts += [f"## {title}", table([inline(name) for name in rows[0]], cells)]
    return "\n\n".join(parts) + "\n"


def _short(value: Any) -> str:
    text = "" if value is None else str(value)
    text = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
    return inline(text)
