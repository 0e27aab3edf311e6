"""account: looks at an account, and clears it up. What the management flows do; not steps of a run."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE

from overnight.errors import ProviderError, Transient
from overnight.job.job import ProviderChoice
from overnight.ledger.run import all_shards
from overnight.providers.listing import ListedBatch, listed_batches
from overnight.providers.replies import TERMINAL
from overnight.providers.stored_files import Stored, deletable, known_files, sorted_out
from overnight.reports.diagnosis import diagnosis_of
from overnight.text import artifact_key, when
from tasks.credentials import open_provider

logger = logging.getLogger("overnight.account")


@dataclass(frozen=True)
class Cleaned:
    """What a clean-up found, and did."""

    files: int
    """At the provider."""
    ours: int
    orphans: int
    deletable: int
    deleted: int
    bytes: int
    """Of what was deleted, or could be."""


@task(name="list", task_run_name="list", cache_policy=NO_CACHE)
def list_account(choice: ProviderChoice, home: Path, limit: int) -> list[ListedBatch]:
    """The newest batches of an account, as the artifact `batches-<profile>` too."""
    with open_provider(choice, home) as provider:
        found = listed_batches(provider, home, limit)
    if found:
        create_table_artifact([vars(one) for one in found], key=artifact_key("batches", choice.profile))
    return found


@task(name="diagnose", task_run_name="diagnose", cache_policy=NO_CACHE)
def diagnose(name: str, home: Path) -> str:
    """What went wrong in a job or a batch, as text and as the artifact `diagnosis-<name>`."""
    text = diagnosis_of(name, home)
    create_markdown_artifact(text, key=artifact_key("diagnosis", name), description=f"diagnosis of {name}")
    return text


@task(name="clean files", task_run_name="clean files", cache_policy=NO_CACHE)
def clean_account(choice: ProviderChoice, home: Path, older_than_hours: float, *, dry_run: bool) -> Cleaned:
    """Deletes our files that nobody needs; only tells of them where `dry_run`."""
    with open_provider(choice, home) as provider:
        files = list(provider.files())  # before the rest: what is uploaded from here on is none of them
        in_use = {b.input_file_id for b in provider.batches() if b.status not in TERMINAL and b.input_file_id}
        stored = sorted_out(files, known_files(all_shards(home)), in_use)
        unneeded = deletable(stored, time.time() - older_than_hours * 3600)
        deleted = 0
        for one in [] if dry_run else unneeded:
            try:
                provider.delete(one.file.id)
            except (Transient, ProviderError) as error:
                logger.warning("file %s (%s) stays: %s", one.file.id, one.file.name, error)
                continue
            deleted += 1
    _show_files(choice, stored, unneeded)
    ours = [one for one in stored if one.use != "foreign"]
    return Cleaned(len(stored), len(ours), sum(one.use == "orphan" for one in stored), len(unneeded), deleted,
                   sum(one.file.bytes or 0 for one in unneeded))  # fmt: skip


def _show_files(choice: ProviderChoice, stored: list[Stored], unneeded: list[Stored]) -> None:
    rows = [
        {"file": one.file.id, "name": one.file.name, "bytes": one.file.bytes, "created": when(one.file.created_at),
         "use": one.use, "job": one.job, "deletable": one in unneeded}
        for one in stored if one.use != "foreign"
    ]  # fmt: skip
    if rows:
        create_table_artifact(rows[:500], key=artifact_key("files", choice.profile))
