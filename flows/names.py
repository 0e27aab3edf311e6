"""Names of flow runs, by which a person finds them again."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.runtime import flow_run

from overnight.job import Job


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
