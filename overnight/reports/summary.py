"""What a run adds up to: the small summary that flows return, and figures as people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.store.objects import address
from overnight.text import counted_of, dollars, printable

if TYPE_CHECKING:
    import pandas as pd


_FIRST_ROWS = 5
_MOST_CHARACTERS = 200
_QUIET = ("custom_id", "finish_reason", "error_message", "model", "_tokens", "batch_id", "attempts", "embedding")
"""Endings of columns that a first look does without."""


@dataclass
class Tally:
    """Counts gathered while the joined table is written."""

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """Rows by status."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by status and error code."""
    new_rows: int = 0
    """Rows that came into the dataset since it was built: they are not in the table."""
    samples: str | None = None
    """A few rows in Markdown."""
    requests: int = 0
    """Distinct requests."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the distinct requests' answers."""
    cost_usd: float | None = None


@dataclass(frozen=True)
class Summary:
    """The outcome of a run. The paths are absolute; of a home on an object store, those of this process's copies."""

    job: str
    rows: int
    requests: int
    """Distinct requests: identical rows share one."""
    batches: int
    succeeded: int
    """Rows with an answer."""
    failed: int
    """All other rows; `statuses` says why."""
    statuses: Mapping[str, int]
    input_tokens: int
    output_tokens: int
    cost_usd: float | None
    """None where the price is not known."""
    max_failed_fraction: float
    joined: Path
    failed_rows: Path
    report: Path
    seconds: float
    billed_usd: float | None = None
    """Of all attempts of all runs, those included whose answers were not good; None where the price is not known."""
    stopped: str | None = None
    """Why nothing more was sent, where the job was stopped."""
    awaited: int = 0
    """Rows whose answers may come yet: their batches cannot be collected for now. `collect` goes on asking."""
    new_rows: int = 0
    """Rows that came into the dataset since it was built: the next run sends them."""

    @property
    def failed_fraction(self) -> float:
        """Rows without an answer, of all."""
        return self.failed / self.rows if self.rows else 0.0

    @property
    def within_bounds(self) -> bool:
        """Whether no more rows failed than the job allows."""
        return self.failed_fraction <= self.max_failed_fraction

    @property
    def outcome(self) -> str:
        """All of it in a sentence."""
        text = f"{self.succeeded:,} of {self.rows:,} rows answered"
        if not self.within_bounds:
            bound = f"max_failed_fraction ({self.max_failed_fraction:.1%})"
            text += f"; {self.failed_fraction:.1%} have no answer, more than {bound}"
        if self.awaited:
            text += f"; {self.awaited:,} of them may be answered yet"
        if self.new_rows:
            text += f"; {counted_of(self.new_rows, 'new row')} came since"
        return f"{text}; stopped: {self.stopped}" if self.stopped else text

    def to_pandas(self) -> pd.DataFrame:
        """The joined table, one row per row of the dataset, with the index of a DataFrame that was handed over.

        Integers with gaps stay integers (`Int64`): as floats they would lose digits.
        """
        import pandas as pd  # noqa: PLC0415 - a pipeline's step does without its 50 MB

        table = pq.read_table(self.joined)
        frame: pd.DataFrame = table.to_pandas()
        nullable = {pa.int64(): pd.Int64Dtype(), pa.int32(): pd.Int32Dtype(), pa.uint64(): pd.UInt64Dtype()}
        for column in table.schema:
            if column.name in frame.columns and column.type in nullable and table[column.name].null_count:
                frame[column.name] = table[column.name].to_pandas(types_mapper=nullable.get).array
        return frame

    def _repr_html_(self) -> str:
        """The outcome as a notebook shows it: counts, cost, and the first rows."""
        tokens = f"{self.input_tokens:,} input and {self.output_tokens:,} output tokens, cost {dollars(self.cost_usd)}"
        told = f"<b>{escape(self.job)}</b>: {escape(self.outcome)}<br>{escape(tokens)}"
        return f"{told}<br><code>{escape(address(self.joined))}</code>{self._first_rows()}"

    def _first_rows(self) -> str:
        """The first rows as an HTML table; nothing where the joined table is gone."""
        if not self.joined.exists():
            return ""
        with pq.ParquetFile(self.joined) as opened:
            names = [name for name in opened.schema_arrow.names if not name.endswith(_QUIET)]
            batch = next(opened.iter_batches(batch_size=_FIRST_ROWS, columns=names), None)
        rows = batch.to_pylist() if batch is not None else []
        head = "".join(f"<th>{escape(name)}</th>" for name in names)
        cells = ["".join(f"<td>{escape(_short(row[name]))}</td>" for name in names) for row in rows]
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(f'<tr>{one}</tr>' for one in cells)}</tbody></table>"
        )

    def as_json(self) -> dict[str, Any]:
        """The fields that `--json` prints."""
        names = ("job", "rows", "requests", "batches", "succeeded", "failed", "input_tokens", "output_tokens",
                 "cost_usd", "billed_usd", "stopped", "awaited", "new_rows", "joined", "failed_rows", "report",
                 "seconds")  # fmt: skip
        values = asdict(self)
        return {name: address(values[name]) if isinstance(values[name], Path) else values[name] for name in names}


def _short(value: Any) -> str:
    text = "" if value is None else printable(value)
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
