"""xAI's batches: OpenAI's files and lines, a name for metadata, counters for a status, results in pages.

Sources: docs.x.ai/developers/advanced-api-usage/batch-api, LiteLLM (`llms/xai/batches`: the counters, `:cancel`, a date
without a time in REST), and the proto of xai-sdk 1.21.0; November 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from overnight.providers.dialects.dialect import Dialect, Order, Page, marked_name, marks_in, said, seconds_of
from overnight.providers.replies import TERMINAL, RemoteBatch, RemoteError, whole_number
from overnight.text import printable


def _order(order: Order) -> Iterator[bytes]:
    return said({"name": marked_name(order), "input_file_id": order.file_id})


def _page(page: Page) -> dict[str, str | int]:
    return {"limit": page.size} | ({"pagination_token": page.after} if page.after else {})


def token(reply: Mapping[str, Any], _last: str = "") -> str | None:
    """What the next page is asked for with; None after the last."""
    return reply.get("pagination_token") or None


def _has_more(reply: Mapping[str, Any], _page: Page) -> bool | None:
    return token(reply) is not None


def _entries(reply: Mapping[str, Any]) -> Any:
    """Of batches, or of files."""
    return reply.get("batches", reply.get("data"))


def _read(reply: Any) -> RemoteBatch | None:
    if not isinstance(reply, dict) or not isinstance(reply.get("batch_id"), str):
        return None
    state = reply.get("state")
    counts = {name: whole_number(value) or 0 for name, value in state.items()} if isinstance(state, dict) else {}
    why, made = reply.get("cancel_by_xai_message"), reply.get("create_time")
    over, end = reply.get("cancel_time"), reply.get("expire_time")
    late = bool(over and end and str(over) >= str(end))
    status = _status(counts, cancelled="expired" if late else "failed" if why else "cancelled" if over else None)
    worked = counts.get("num_success", 0) + counts.get("num_error", 0)
    return RemoteBatch(
        id=reply["batch_id"],
        status=status,
        input_file_id=reply.get("input_file_id") or None,
        output_file_id=reply["batch_id"] if worked and status in TERMINAL else None,
        done=counts.get("num_success"),
        failed=counts.get("num_error"),
        total=counts.get("num_requests") or None,
        created_at=seconds_of(made) if "T" in str(made) else None,  # a day alone says too little
        errors=(RemoteError("failed", printable(why), None),) if why else (),
        metadata=marks_in(reply.get("name")),
    )


def _status(counts: Mapping[str, int], cancelled: str | None) -> str:
    """A word for what the counters say; a batch without requests is still reading its file."""
    pending = counts.get("num_pending", 0)
    if cancelled:
        return "cancelling" if pending else cancelled
    if not counts.get("num_requests"):
        return "validating"
    return "in_progress" if pending else "completed"


XAI = Dialect(
    "/batches", _order, _page, _read, _has_more, evidence="its name, else its input file",
    entries=_entries, token=token,
)  # fmt: skip
