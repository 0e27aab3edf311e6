"""What a run adds up to: the small summary that flows return, and figures as people read them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq

if TYPE_CHECKING:  # a pipeline's step does without its 50 MB
    import pandas as pd


@dataclass
class Tally:
    """Counts gathered while the joined table is written."""

    rows: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    """Rows by status."""
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows by status and error code."""
    examples: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    """For each of these, its first row (from 0) and the message there."""
    samples: str | None = None
    """A few rows in Markdown."""
    requests: int = 0
    """Distinct requests."""
    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    """Tokens of the distinct requests' answers."""
    cost_usd: float | None = None
    compared: int = 0
    """Rows with an answer and an expected one."""
    agreed: int = 0


@dataclass(frozen=True)
class Summary:
    """The outcome of a run. The paths are absolute."""

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
        return f"{text}; stopped: {self.stopped}" if self.stopped else text

    def to_pandas(self) -> pd.DataFrame:
        """The joined table, one row per row of the dataset."""
        frame: pd.DataFrame = pq.read_table(self.joined).to_pandas()
        return frame

    def as_json(self) -> dict[str, Any]:
        """The fields that `--json` prints."""
        names = ("job", "rows", "requests", "batches", "succeeded", "failed", "input_tokens", "output_tokens",
                 "cost_usd", "billed_usd", "stopped", "joined", "failed_rows", "report", "seconds")  # fmt: skip
        values = asdict(self)
        return {name: str(values[name]) if isinstance(values[name], Path) else values[name] for name in names}


def dollars(amount: float | None) -> str:
    """An amount of USD for people: `unknown` where nobody knows it."""
    if amount is None:
        return "unknown"
    if amount == 0:
        return "$0"
    digits = 2 if amount >= 0.1 else min(8, 2 - math.floor(math.log10(amount)))
    return f"${amount:,.{digits}f}"


def counted_of(number: int, noun: str) -> str:
    """A count for people: `1 batch`, `1,200 batches`, `3 rows`."""
    ending = "" if number == 1 else "es" if noun.endswith("ch") else "s"
    return f"{number:,} {noun}{ending}"


def duration(seconds: float) -> str:
    """Seconds for people: `42 s`, `12 min`, `3 h 5 min`."""
    if seconds < 100:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def artifact_key(kind: str, job: str) -> str:
    """The key under which the Prefect page keeps a job's texts; it takes lower case letters, digits and dashes."""
    return f"{kind}-" + re.sub(r"[^a-z0-9]+", "-", job.lower()).strip("-")


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    cells = [[str(cell).replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in (cells[0], ["---"] * len(head), *cells[1:])]
    return "\n".join(lines)
