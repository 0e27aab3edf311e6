"""A starter job's file: from the first rows of a dataset."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from overnight.errors import JobError
from overnight.job.cells import cells_of
from overnight.job.job import Dataset
from overnight.job.jobfile import load_job, read_provider
from overnight.job.starter import Asked, starter_job
from overnight.rows.dataset import open_dataset
from overnight.store.files import write_text

_ROWS = 200
"""Looked at to choose columns."""


def write_starter(dataset: str, asked: Asked, output: Path | None = None) -> Path:
    """Writes a starter job for a dataset; returns its file.

    Args:
        dataset: its path.
        asked: what the person chose.
        output: the file; else the dataset's name with `.yaml`, in the working directory.

    Raises:
        DatasetError: the dataset cannot be read.
        JobError: a choice is not there, or the file is.
    """
    read_provider({"profile": asked.profile})
    rows = open_dataset(Dataset(path=dataset))
    first = next(rows.batches()).slice(0, _ROWS)
    columns = {field.name: cells_of(first[field.name], field).values for field in rows.schema}
    sample = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    stem = dataset.rstrip("/").rpartition("/")[2].split(".")[0]
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", stem).strip("-_")[:24] or "my-job"
    target = output or Path(f"{name}.yaml")
    if target.exists():
        raise JobError(f"{target} is there already: name another file with --output")
    text = starter_job(dataset, name, sample, asked)
    load_job(yaml.safe_load(text))
    write_text(target, text)
    return target
