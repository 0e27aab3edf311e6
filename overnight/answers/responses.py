"""A batch's response files on disk: the provider's output and error file, byte for byte."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from overnight.answers.judge import LOST, FilesFound
from overnight.errors import LedgerError
from overnight.ledger.records import Batch


@dataclass(frozen=True)
class ResponseFiles:
    """The files of one ended batch; None where the provider made none."""

    batch: Batch
    output: Path | None
    error: Path | None
    output_gone: bool = False
    """Whether the batch names an output file that the provider has no longer: what it held was paid."""

    @property
    def found(self) -> FilesFound:
        """What the judge wants to know of them."""
        any_line = any(path is not None and path.stat().st_size > 0 for path in (self.output, self.error))
        return FilesFound(any_line, self.output_gone)


def response_path(folder: Path, batch: Batch, kind: str) -> Path:
    """Where a file goes; ids of some providers hold slashes (`batches/abc`)."""
    name = batch.batch_id or str(batch.id)
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', name)}.{kind}.jsonl"


def collected_files(folder: Path, batch: Batch) -> ResponseFiles:
    """The files of a batch that was collected.

    Raises:
        LedgerError: one is gone.
    """
    output, error = (response_path(folder, batch, kind) for kind in ("output", "error"))
    if batch.output_file_id and batch.status != LOST and not output.exists():
        raise LedgerError(f"{output} is missing, and so are the results that were read from it: restore one of them")
    return ResponseFiles(batch, output if output.exists() else None, error if error.exists() else None)
