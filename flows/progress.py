"""progress: the table of a job's batches on the page, kept up to date in place. Not a step: steps and flows call it."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

import httpx
from prefect.artifacts import create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey
from prefect.client.schemas.sorting import ArtifactSort
from prefect.exceptions import PrefectHTTPStatusError
from prefect.runtime import flow_run

from overnight.ledger.run import Run
from overnight.reports.status import batch_rows
from overnight.text import artifact_key

logger = logging.getLogger("overnight.progress")


def publish_progress(run: Run) -> None:
    """Shows a job's batches as the artifact `progress-<job>`: one version per build, updated in place by every flow.

    The page is a view: where it cannot be reached the work goes on.
    """
    record = run.ledger.job(run.job.name)
    if record is None or flow_run.id is None:
        return
    rows = batch_rows(run.ledger.shards(run.job.name), time.time())
    try:
        _put(artifact_key("progress", run.job.name), run.job.name, rows, record.built_at)
    except (httpx.HTTPError, PrefectHTTPStatusError) as error:
        logger.warning("the progress of %s cannot be shown on Prefect's page: %s", run.job.name, error)


def _put(key: str, job: str, rows: list[dict[str, Any]], built_at: float) -> None:
    wanted = ArtifactFilter(key=ArtifactFilterKey(any_=[key]))
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=wanted, sort=ArtifactSort.CREATED_DESC, limit=1)
        latest = found[0] if found else None
        if latest is not None and latest.created is not None and latest.created.timestamp() >= built_at:
            client.update_artifact(latest.id, ArtifactUpdate(data=json.dumps(rows)))
            return
    create_table_artifact(rows, key=key, description=f"batches of {job}")
