"""validate: every rule of the provider on every staged file; then they are the job's, planned in the ledger."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.builds.checks import check_files
from overnight.job.prompt import definition_of
from overnight.ledger.builder import Build
from overnight.ledger.identity import claim_folder, keep_count
from overnight.ledger.records import JobRecord, NewShard, Shard
from overnight.ledger.request_files import place_file, request_path
from overnight.ledger.run import Run, self_contained
from overnight.store.files import sync_folder
from overnight.store.objects import forget, keep
from tasks.credentials import provider_of


def sort_out(planned: Sequence[Shard], built: Sequence[NewShard]) -> tuple[list[Shard], list[NewShard]]:
    """What gives way and what is new: a shard that was built again byte for byte stays, with its upload."""
    again = {_same(shard) for shard in built} & {_same(shard) for shard in planned}
    return [old for old in planned if _same(old) not in again], [new for new in built if _same(new) not in again]


def _same(shard: NewShard) -> tuple[str, bool]:
    return shard.key, shard.canary is not None


def plan_staged(run: Run, build: Build) -> None:
    """Plans the staged files, then moves them into place.

    Killed in between, the ledger knows them all, and the next process moves them: what stands in `requests/` and is not
    in the ledger was sent by another.
    """
    folder, ledger, job = run.folder, run.ledger, run.job
    outdated, fresh = sort_out([ledger.shard(number) for number in build.superseded], build.shards)
    record = JobRecord(
        name=job.name,
        job=self_contained(job).model_dump(mode="json", by_alias=True),
        definition=definition_of(job),
        fingerprint=build.fingerprint,
        rows=build.rows,
        requests=build.requests,
        built_at=time.time(),
        build=build.token,
    )
    sync_folder(folder.staging)
    claim_folder(run)
    staged_rows, rows = folder.staging / "rows.parquet", folder.rows(build.token)
    for shard in fresh:
        keep(folder.staging / shard.file_name, at=request_path(folder, shard))
    keep(staged_rows, at=rows)
    ledger.plan(record, fresh, drop=[shard.id for shard in outdated])
    for shard in fresh:
        place_file(folder, folder.staging / shard.file_name, request_path(folder, shard))
    staged_rows.replace(rows)
    sync_folder(folder.path)
    keep_count(run)
    for shard in outdated:
        forget(request_path(folder, shard))
    shutil.rmtree(folder.staging)


def check_provider(run: Run) -> None:
    """Asks the provider, which shows that address and key are good.

    Raises:
        Unauthorized, NoBatchApi, ProviderUnavailable: it cannot be used.
    """
    with provider_of(run) as provider:
        provider.check()


@task(name="validate", task_run_name="validate", cache_policy=NO_CACHE)
def validate_requests(run: Run, build: Build) -> None:
    """Checks the staged files, then address and key, and plans what is to be sent.

    Raises:
        InvalidRequests: rules are broken; lists every line.
        Unauthorized, NoBatchApi, ProviderUnavailable: the provider cannot be used.
    """
    try:
        check_files(run.folder.staging, build, run.job.profile)
        if build.shards:
            check_provider(run)
    except BaseException:
        shutil.rmtree(run.folder.staging)
        raise
    plan_staged(run, build)
