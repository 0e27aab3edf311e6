"""What a table of a lakehouse is given to commit."""

from __future__ import annotations

from typing import NamedTuple

import pyarrow as pa


class Commit(NamedTuple):
    """Rows, and what their commit is known again by."""

    job: str
    key: tuple[str, ...]
    """Columns that name a row, where rows are to be merged."""
    application: str
    version: int
    rows: pa.RecordBatchReader
    """Read once: a commit that failed is tried again with another."""


class Conflict(Exception):
    """The table did not take a commit, for a reason that may pass, such as another writer."""
