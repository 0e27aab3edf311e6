"""fetch: the output and error files of an ended batch, byte for byte."""

from __future__ import annotations

import logging
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.responses import ResponseFiles, response_path
from overnight.answers.trouble import note_trouble
from overnight.errors import NotFound, OvernightError, Terminal
from overnight.ledger.records import Batch
from overnight.ledger.run import Run
from overnight.providers.provider import Provider
from overnight.store.objects import is_there
from tasks.credentials import provider_of
from tasks.names import span_name

logger = logging.getLogger("overnight.fetch")


def fetch(provider: Provider, folder: Path, batch: Batch) -> ResponseFiles:
    """Downloads what is not there yet: a file that stands under its final name is whole.

    A file of no bytes is asked for again: it may have been named before anything was written to it.
    """
    paths: dict[str, Path | None] = {"output": None, "error": None}
    gone = {"output": False, "error": False}
    for kind, file_id in (("output", batch.output_file_id), ("error", batch.error_file_id)):
        if not file_id:
            continue
        path = response_path(folder, batch, kind)
        if batch.real_time and not is_there(path):
            gone[kind] = True  # it was written here: the provider has none
            continue
        if not is_there(path) or not path.stat().st_size:
            try:
                provider.download(file_id, path)
            except NotFound as error:
                logger.warning("batch %s: its %s file is not there: %s", batch.batch_id, kind, error)
                gone[kind] = True
                continue
        paths[kind] = path
    return ResponseFiles(batch, paths["output"], paths["error"], gone["output"], gone["error"])


@task(
    name="fetch", task_run_name=span_name("fetch", "batches"), cache_policy=NO_CACHE, retries=3, retry_delay_seconds=2
)
def fetch_files(run: Run, batches: tuple[Batch, ...]) -> tuple[ResponseFiles, ...]:
    """Downloads the files of ended batches; one that cannot be fetched now keeps no other from it, and is tried again.

    Raises:
        Terminal: one is refused for good, and none could be fetched.
    """
    whole: list[ResponseFiles] = []
    failure: OvernightError | None = None
    with provider_of(run) as provider:
        for batch in batches:
            try:
                whole.append(fetch(provider, run.folder.responses, batch))
            except OvernightError as error:
                note_trouble(run, batch, f"it cannot be fetched: {error.message}")
                failure = failure or (error if isinstance(error, Terminal) else None)
    if failure and not whole:
        raise failure
    return tuple(whole)
