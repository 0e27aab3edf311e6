"""One dataset, several models: a job's variants, each a job of its own with its own folder, batches and custom_ids."""

from __future__ import annotations

import hashlib
import re
from typing import Any

from overnight.errors import JobError
from overnight.job.job import Job, Variant
from overnight.job.jobfile import load_job

_LONGEST = 31
"""Characters of a job's name."""
_DIGEST = 5


def variant_jobs(job: Job) -> dict[str, Job]:
    """The jobs that a job with `models` or `variants` stands for, by their labels and in their order.

    Their names start with the job's, so that each has its own folder and its own custom_ids. Empty for a plain job.

    Raises:
        JobError: a variant is no valid job; names it.
    """
    chosen = {**{model: Variant(model=model) for model in job.models}, **job.variants}
    base = job.model_dump(mode="json", by_alias=True, exclude_unset=True, exclude={"models", "variants"})
    return {label: _variant(job, base, label, variant) for label, variant in chosen.items()}


def variant_name(job: str, label: str) -> str:
    """The name of a variant's job: readable, and another one for every label."""
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", label).strip("-")
    name = f"{job}-{plain}"
    if plain == label and len(name) <= _LONGEST:
        return name
    digest = hashlib.blake2b(label.encode(), digest_size=8).hexdigest()[:_DIGEST]
    return f"{name[: _LONGEST - _DIGEST - 1]}-{digest}"


def _variant(job: Job, base: dict[str, Any], label: str, variant: Variant) -> Job:
    given = variant.model_dump(mode="json", by_alias=True, exclude_unset=True)
    fields = {**base, **given, "name": variant_name(job.name, label)}
    fields |= {part: {**base.get(part, {}), **given[part]} for part in ("task", "parameters") if part in given}
    try:
        return load_job(fields)
    except JobError as error:
        raise JobError(f"the variant {label!r} of {job.name}: {error.message}", error.problems) from None
