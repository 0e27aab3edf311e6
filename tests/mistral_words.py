"""Batches of the provider that misbehaves in Mistral's words, as mistralai 3.7.0 types them."""

from __future__ import annotations

from typing import Any

STATUSES = {
    "validating": "QUEUED", "in_progress": "RUNNING", "finalizing": "RUNNING", "completed": "SUCCESS", "failed": "FAILED",
    "expired": "TIMEOUT_EXCEEDED", "cancelling": "CANCELLATION_REQUESTED", "cancelled": "CANCELLED",
}  # fmt: skip


def order(wanted: dict[str, Any]) -> dict[str, Any]:
    """What a create call wants, as OpenAI words it."""
    return {
        "input_file_id": wanted["input_files"][0],
        "endpoint": wanted["endpoint"],
        "completion_window": f"{wanted.get('timeout_hours', 24)}h",
        "metadata": wanted.get("metadata"),
        "model": wanted.get("model"),
    }


def job(batch: dict[str, Any] | None) -> dict[str, Any] | None:
    """A batch as a `BatchJob`."""
    if batch is None:
        return None
    errors = batch["errors"]["data"] if isinstance(batch["errors"], dict) else []
    counts = batch["request_counts"] or {"completed": 0, "failed": 0, "total": 0}
    return {
        "id": batch["id"], "object": "batch", "endpoint": batch["endpoint"], "model": batch.get("model"),
        "input_files": [batch["input_file_id"]], "metadata": batch["metadata"], "agent_id": None,
        "output_file": batch["output_file_id"], "error_file": batch["error_file_id"], "outputs": None,
        "errors": [{"message": one["message"], "count": 1} for one in errors],
        "status": STATUSES.get(batch["status"], batch["status"].upper()), "created_at": batch["created_at"],
        "started_at": None, "completed_at": None, "total_requests": counts["total"],
        "completed_requests": (counts["completed"] or 0) + (counts["failed"] or 0),
        "succeeded_requests": counts["completed"], "failed_requests": counts["failed"],
    }  # fmt: skip


def page(listed: dict[str, Any], number: int, size: int) -> dict[str, Any]:
    """A page of jobs, newest first."""
    jobs = [job(batch) for batch in listed["data"]]
    return {"object": "list", "data": jobs[number * size : (number + 1) * size], "total": len(jobs)}
