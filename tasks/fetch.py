"""fetch: the output and error files of an ended batch, byte for byte."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.errors import LedgerError, NotFound, OvernightError
from overnight.provider import Provider
from overnight.records import Batch
from overnight.run import Run
from tasks.connect import provider_of
from tasks.span import span_name

logger = logging.getLogger("overnight.fetch")


@dataclass(frozen=True)
class Fetched:
    """The files of one ended batch; None where the provider made none."""

    batch: Batch
    output: Path | None
    error: Path | None

    @property
    def lines(self) -> bool:
        """Whether there is any line in them."""
        return any(path is not None and path.stat().st_size > 0 for path in (self.output, self.error))


def response_path(folder: Path, batch_id: str, kind: str) -> Path:
    """Where a file goes; ids of some providers hold slashes (`batches/abc`)."""
    return folder / f"{re.sub(r'[^A-Za-z0-9_.-]', '_', batch_id)}.{kind}.jsonl"


def fetch(provider: Provider, folder: Path, batch: Batch) -> Fetched:
    """Downloads what is not there yet: a file that stands under its final name is whole."""
    paths: dict[str, Path | None] = {"output": None, "error": None}
    for kind, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
        if not file_id:
            continue
        path = response_path(folder, batch.batch_id or str(batch.id), kind)
        if not path.exists():
            try:
                provider.download(file_id, path)
            except NotFound as error:
                logger.warning("batch %s: its %s file is gone: %s", batch.batch_id, kind, error)
                if kind == "output":  # what it held was paid, and cannot be had any more
                    batch = replace(batch, status="lost")
                continue  # some providers name an error file that they never make
        paths[kind] = path
    return Fetched(batch, paths["output"], paths["error"])


def fetched_before(folder: Path, batch: Batch) -> Fetched:
    """The files of a batch that was collected.

    Raises:
        LedgerError: one is gone.
    """
    paths = [response_path(folder, batch.batch_id or str(batch.id), kind) for kind in ("output", "error")]
    if batch.output_file_id and batch.status != "lost" and not paths[0].exists():
        raise LedgerError(f"{paths[0]} is missing, and so are the results that were read from it: restore one of them")
    output, error = (path if path.exists() else None for path in paths)
    return Fetched(batch, output, error)


@task(
    name="fetch", task_run_name=span_name("fetch", "batches"), cache_policy=NO_CACHE, retries=3, retry_delay_seconds=2
)
def fetch_files(run: Run, batches: tuple[Batch, ...]) -> tuple[Fetched, ...]:
    """Downloads the files of ended batches; one that cannot be fetched now keeps no other from it.

    Raises:
        OvernightError: none could be fetched.
    """
    whole: list[Fetched] = []
    failure: OvernightError | None = None
    with provider_of(run) as provider:
        for batch in batches:
            try:
                whole.append(fetch(provider, run.folder.responses, batch))
            except OvernightError as error:
                logger.warning("batch %s cannot be fetched: %s", batch.batch_id, error)
                failure = failure or error
    if failure and not whole:
        raise failure
    return tuple(whole)
