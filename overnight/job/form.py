"""A new job as a short form, for the Prefect page: what every job needs, and all else as a job file says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from overnight.errors import JobError, Problem
from overnight.job.profiles import profile_names


class JobForm(BaseModel, title="new job"):
    """What to fill in for a job that has no file yet."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$",
        description="Up to 31 letters, digits, - and _: run it again by it.",
    )
    dataset: str = Field(
        min_length=1, description="A csv, parquet or jsonl file, a folder or glob of them, or an address (s3://…)."
    )
    prompt: str = Field(
        min_length=1,
        description="What to ask of each row; {{ column }} is where a column goes. With labels: the text to classify.",
    )
    model: str = Field(min_length=1, description="As the provider names it; the local one is smollm2-135m-instruct.")
    provider: str = Field(
        default="local",
        description="Whose Batch API; local is the model of the worker's machine.",
        json_schema_extra=lambda schema: schema.update(enum=[*profile_names()]),
    )
    labels: list[str] = Field(default=[], description="To classify: the answer is one of these.")
    max_rows: int = Field(default=0, ge=0, description="Only the first rows; 0 takes all.")
    more: dict[str, Any] = Field(
        default={},
        description='All else that a job file may say: {"limits": {"budget_usd": 5}, "parameters": {"max_tokens": 9}}.',
    )


def is_form(job: Any) -> bool:
    """Whether a job is given as the form's fields: those of a job file have a task."""
    return isinstance(job, Mapping) and "task" not in job and "prompt" in job


def from_form(values: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a job file out of a form's.

    Raises:
        JobError: a field is missing, empty or unknown; lists all of them.
    """
    try:
        form = JobForm.model_validate(values)
    except ValidationError as invalid:
        wrong = [Problem(".".join(map(str, error["loc"])), error["msg"]) for error in invalid.errors()]
        raise JobError("the form of the job is not filled in:", wrong) from None
    asked: dict[str, Any] = {"kind": "generate", "prompt": form.prompt}
    if form.labels:
        asked = {"kind": "classify", "text": form.prompt, "labels": form.labels}
    job: dict[str, Any] = {
        "name": form.name, "dataset": {"path": form.dataset}, "task": asked, "model": form.model,
        "provider": {"profile": form.provider},
    }  # fmt: skip
    return _merged(job, {"limits": {"max_rows": form.max_rows}} if form.max_rows else {}, form.more)


def _merged(*jobs: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of several jobs, those of later ones over those of earlier ones, group by group."""
    found: dict[str, Any] = {}
    for job in jobs:
        for name, value in job.items():
            both = isinstance(value, Mapping) and isinstance(found.get(name), Mapping)
            found[name] = {**found[name], **value} if both else value
    return found
