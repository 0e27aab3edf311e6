"""Mistral's batch jobs: files as OpenAI's, the rest in other words.

Sources: docs.mistral.ai/studio-api/batch-processing (a line's body may name its model, the job may instead), and the
types of mistralai 3.7.0 (`CreateBatchJobRequest`, `BatchJob`, `ListBatchJobsResponse`); November 2026.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from overnight.providers.dialects.dialect import Dialect, Order, Page, said
from overnight.providers.replies import RemoteBatch, RemoteError, status_word, whole_number
from overnight.text import printable

_MOST_HOURS = 24 * 7


def _order(order: Order) -> Iterator[bytes]:
    body: dict[str, Any] = {
        "input_files": [order.file_id],
        "endpoint": order.url,
        "metadata": dict(order.metadata),
        "timeout_hours": _hours(order.window),
    }
    return said(body | ({"model": order.model} if order.model else {}))


def _hours(window: str) -> int:
    """A window such as `24h` or `2d` in hours, as far as Mistral lets a job run."""
    found = re.fullmatch(r"(\d+)([hd])", window)
    hours = int(found[1]) * (24 if found[2] == "d" else 1) if found else 24
    return min(max(hours, 1), _MOST_HOURS)


def _page(page: Page) -> dict[str, str | int]:
    return {"page": page.number, "page_size": page.size}


def _has_more(reply: Mapping[str, Any], page: Page) -> bool | None:
    total = reply.get("total")
    return (page.number + 1) * page.size < total if isinstance(total, int) else None


def _read(reply: Any) -> RemoteBatch | None:
    if not isinstance(reply, dict) or not isinstance(reply.get("id"), str):
        return None
    files, created, metadata = reply.get("input_files"), reply.get("created_at"), reply.get("metadata")
    return RemoteBatch(
        id=reply["id"],
        status=status_word(reply.get("status")),
        input_file_id=str(files[0]) if isinstance(files, list) and len(files) == 1 else None,
        output_file_id=reply.get("output_file") or None,
        error_file_id=reply.get("error_file") or None,
        done=whole_number(reply.get("succeeded_requests")),
        failed=whole_number(reply.get("failed_requests")),
        total=whole_number(reply.get("total_requests")),
        created_at=float(created) if isinstance(created, int | float) else None,
        errors=tuple(_errors(reply.get("errors"))),
        metadata={str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else None,
    )


def _errors(errors: Any) -> Iterator[RemoteError]:
    """`{message, count}`: how many lines of the file have an error."""
    for error in errors if isinstance(errors, list) else ():
        if isinstance(error, dict):
            times = f" ({error['count']} times)" if isinstance(error.get("count"), int) and error["count"] > 1 else ""
            yield RemoteError("error", f"{printable(error.get('message') or '')}{times}", None)


MISTRAL = Dialect("/batch/jobs", _order, _page, _read, _has_more, evidence="its metadata")
