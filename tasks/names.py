"""names: of task runs that take several shards or batches. Not a step: steps use it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from prefect.runtime import task_run

from overnight.text import short_id


def span_name(verb: str, parameter: str) -> Callable[[], str]:
    """A task run's name: the verb, and the first and the last of what it takes.

    Args:
        verb: the task's name.
        parameter: which holds the shards, batches, or fetched files.
    """

    def name() -> str:
        items = [_label(item) for item in task_run.parameters.get(parameter, ())]
        return " ".join([verb, *items[:1], *(["to", items[-1]] if len(items) > 1 else [])])

    return name


def _label(item: Any) -> str:
    if (file_name := getattr(item, "file_name", None)) is not None:
        return str(file_name).removesuffix(".jsonl")
    batch = getattr(item, "batch", item)
    return short_id(str(batch.batch_id))
