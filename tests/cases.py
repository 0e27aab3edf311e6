"""One row of a test table: what the provider does, and what has to come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest

from overnight.ledger.run import Run
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import run_job

TEXTS = ("t0", "t1", "t2", "t3", "t4", "t5")


class Outcome(NamedTuple):
    """What a job came to."""

    run: Run
    table: pd.DataFrame
    books: dict[str, Any]


@dataclass
class Case:
    """A job of six rows at a provider that misbehaves."""

    orders: dict[str, Any]
    """For the provider, before the job runs."""
    texts: tuple[str, ...] = TEXTS
    job: dict[str, Any] = field(default_factory=dict)
    statuses: dict[str, int] = field(default_factory=lambda: {"succeeded": 6})
    """Rows by status."""
    billed: int = 6
    """Requests that were worked on, each as often as it was."""
    batches: int | None = 1
    """That were made; None: as many as it takes."""
    also: Callable[[Outcome], bool] = lambda _: True
    """What else holds."""


def case(number: int, kind: str, what: str, orders: dict[str, Any] | None = None, **fields: Any) -> Any:
    """A row with its number in providers' list of what goes wrong, as pytest takes it."""
    return pytest.param(Case(orders or {}, **fields), id=f"{kind} {number:02d}: {what}")


def check_case(one: Case, make_job: MakeJob, tmp_path: Path, server: ProviderProcess) -> None:
    """Runs a case and compares rows by status, requests billed and batches made."""
    server.order(**one.orders)
    run, table = run_job(make_job(list(one.texts), **one.job), tmp_path / "home")
    books = server.books()
    assert {str(status): int(rows) for status, rows in table["status"].value_counts().items()} == one.statuses
    assert sum(books["billed"].values()) == one.billed
    assert one.batches is None or len(books["batches"]) == one.batches
    assert one.also(Outcome(run, table, books))
