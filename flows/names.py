"""Names and tags of flow runs, by which a person finds them again, and the parameter that they are made from."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import StateType
from prefect.runtime import deployment, flow_run
from pydantic import Field

from overnight.job.form import JobForm
from overnight.job.job import Job, ProviderChoice
from overnight.ledger.run import Run

JobFile = Annotated[
    str, Field(title="job file", description="The path of a job file on the worker's machine; to cancel it, its name.")
]
WholeJob = Annotated[
    dict[str, Any],
    Field(title="whole job", description="All fields of a job file.", json_schema_extra={"required": ["name", "task"]}),
]
ProviderName = Annotated[
    str,
    Field(title="profile or job file", description="The name of a profile, or the path of a job file that names one."),
]
if TYPE_CHECKING:
    JobInput = Job | dict[str, Any] | str
    ProviderInput = ProviderChoice | dict[str, Any] | str
else:  # what the page makes its forms of, the shortest first; it refuses what none of them takes
    JobInput = JobFile | JobForm | WholeJob
    ProviderInput = ProviderChoice | ProviderName
INTERRUPTED = "stopped by Ctrl-C; what was sent goes on at the provider, and the next run goes on with it"
"""The message of a run that ended so: it is a cancellation of the run, and not of its batches."""
_MOST_BATCH_TAGS = 20
"""The page shows all tags of a run in its list."""
_HOLDS = "overnight.holds"
logger = logging.getLogger("overnight.names")


def job_name(job: Any) -> str:
    """A job's name: of a `Job`, of its fields, or of its file."""
    if isinstance(job, Job):
        return job.name
    if isinstance(job, Mapping):
        return str(job.get("name", "job"))
    return Path(str(job)).stem


def name_run() -> str:
    """The name of the current flow run: its job's."""
    return job_name(flow_run.parameters.get("job"))


def name_sweep() -> str:
    """The name of the current sweep: its job's, or `all jobs`."""
    return str(flow_run.parameters.get("job") or "all jobs")


def name_provider_run() -> str:
    """The name of the current flow run: its provider's."""
    provider = flow_run.parameters.get("provider")
    if isinstance(provider, Mapping):
        return str(provider.get("profile", "provider"))
    return str(getattr(provider, "profile", None) or provider)


def tag_run(run: Run) -> None:
    """Tags the current flow run with its job, provider and model, however it ends."""
    _update(tags=sorted(_tags(run)))


def label_run(run: Run) -> None:
    """Names the current flow run `reviews · 60 rows · local`, adds its batches, and notes that it holds the job."""
    record = run.ledger.job(run.job.name)
    if record is None:
        return
    batches = [b.batch_id for shard in run.ledger.shards(run.job.name) for b in shard.batches if b.batch_id]
    name = f"{run.job.name} · {record.rows:,} rows · {run.job.profile.name}"
    _update(name=name, tags=sorted({*_tags(run), *batches[-_MOST_BATCH_TAGS:]}), holds=run.job.name)


def _tags(run: Run) -> set[str]:
    ours = {f"job:{run.job.name}", f"provider:{run.job.profile.name}"}
    return {*flow_run.tags, *ours, *([f"model:{run.job.model}"] if run.job.model else [])}


def _update(*, holds: str | None = None, **fields: Any) -> None:
    if flow_run.id is None:
        return
    try:
        with get_client(sync_client=True) as client:
            client.update_flow_run(flow_run.id, **fields)
            if holds:
                client.update_flow_run_labels(flow_run.id, {_HOLDS: holds})
    except httpx.HTTPError as error:
        logger.warning("the run cannot be named on Prefect's page: %s", error)


def held_job(run_id: str, job: str) -> bool:
    """Whether a flow run that was cancelled was at work on a job: only then a person meant the job's batches.

    A run that Prefect cancels before it starts (a deployment's concurrency limit) was never running or suspended, and
    one that waited for another run of the job, or for a person's yes, never held it (`label_run`). Who presses Ctrl-C
    means the process: what was sent goes on.
    """
    with get_client(sync_client=True) as client:
        found = client.read_flow_run(UUID(run_id))
        states = client.read_flow_run_states(UUID(run_id))
    if found.state is not None and found.state.message == INTERRUPTED:
        return False
    worked = any(state.type in (StateType.RUNNING, StateType.PAUSED) for state in states)
    return worked and found.labels.get(_HOLDS) == job


def in_deployment() -> bool:
    """Whether the current flow run is one of a deployment, which has a page and somebody who looks at its alerts."""
    return deployment.id is not None
