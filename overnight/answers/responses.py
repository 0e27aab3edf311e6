"""A batch's response files on disk: the provider's output and error file, byte for byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from overnight.answers.judge import LOST, FilesFound
from overnight.errors import LedgerError
from overnight.ledger.records import Batch
from overnight.store.home import shown
from overnight.store.objects import is_there


@dataclass(frozen=True)
class ResponseFiles:
    """The files of one ended batch; None where the provider made none."""

    batch: Batch
    output: Path | None
    error: Path | None
    output_gone: bool = False
    error_gone: bool = False
    """Whether the batch names a file that the provider does not have now: what it holds was paid."""

    @property
    def found(self) -> FilesFound:
        """What the judge wants to know of them."""
        lines = sum(_count_lines(path) for path in (self.output, self.error) if path is not None)
        return FilesFound(lines, self.output_gone, self.error_gone)


def _count_lines(path: Path) -> int:
    with path.open("rb") as stream:
        return sum(1 for line in stream if not line.isspace())


def response_path(folder: Path, batch: Batch, kind: str) -> Path:
    """Where a file goes: by our own token, since a server that was set up anew gives its ids a second time."""
    return folder / f"{batch.token}.{kind}.jsonl"


def _older_path(folder: Path, batch: Batch, kind: str) -> Path:
    """Where older versions put it: by the provider's id."""
    name = batch.batch_id or str(batch.id)
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.{kind}.jsonl"


def collected_files(folder: Path, batch: Batch) -> ResponseFiles:
    """The files of a batch that was collected.

    Raises:
        LedgerError: one is gone.
    """
    paths = [(response_path(folder, batch, kind), _older_path(folder, batch, kind)) for kind in ("output", "error")]
    output, error = (path if is_there(path) or not is_there(older) else older for path, older in paths)
    if batch.output_file_id and batch.status != LOST and not output.exists():
        raise LedgerError(
            f"{shown(output)} is missing, and so are the results that were read from it: restore one of them"
        )
    return ResponseFiles(batch, output if output.exists() else None, error if error.exists() else None)
