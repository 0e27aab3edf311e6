"""OpenAI's Batch API, which a dozen providers speak (platform.openai.com/docs/api-reference/batch, November 2026)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from overnight.providers.dialects.dialect import Dialect, Order, Page, said
from overnight.providers.replies import remote_batch

_OUTPUT_EXPIRY = {"anchor": "created_at", "seconds": 30 * 86_400}


def _order(order: Order) -> Iterator[bytes]:
    body = {
        "input_file_id": order.file_id,
        "endpoint": order.url,
        "completion_window": order.window,
        "metadata": dict(order.metadata),
    }
    return said(body | ({"output_expires_after": _OUTPUT_EXPIRY} if order.expires_outputs else {}))


def _page(page: Page) -> dict[str, str | int]:
    return {"limit": page.size, "after": page.after} if page.after else {"limit": page.size}


def _has_more(reply: Mapping[str, Any], _page: Page) -> bool | None:
    told = reply.get("has_more")
    return told if isinstance(told, bool) else None


OPENAI = Dialect("/batches", _order, _page, remote_batch, _has_more)
