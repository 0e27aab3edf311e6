"""Batches of the provider that misbehaves in xAI's words (docs.x.ai, and xai-sdk's proto as LiteLLM reads it over REST)."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

ENDED = ("completed", "expired", "cancelled", "failed")


def order(wanted: dict[str, Any]) -> dict[str, Any]:
    """What a create call wants, as OpenAI words it."""
    return {
        "input_file_id": wanted["input_file_id"], "endpoint": "/v1/chat/completions", "completion_window": "24h",
        "metadata": {"name": wanted["name"]},
    }  # fmt: skip


def batch(known: dict[str, Any] | None, requests: int, results: list[Any]) -> dict[str, Any] | None:
    """A batch with counters, and no word for how it is."""
    if known is None:
        return None
    status = known["status"]
    good = sum("response" in one["batch_result"] for one in results)
    state = {"num_requests": requests, "num_pending": 0 if status in ENDED else requests, "num_success": 0,
             "num_error": 0, "num_cancelled": 0}  # fmt: skip
    if status in ENDED:
        state |= {"num_success": good, "num_error": len(results) - good, "num_cancelled": requests - len(results)}
    told: dict[str, Any] = {
        "batch_id": known["id"], "name": (known["metadata"] or {}).get("name"), "state": state,
        "create_time": datetime.fromtimestamp(known["created_at"], UTC).date().isoformat(),
        "input_file_id": known["input_file_id"],
    }  # fmt: skip
    if status in ("cancelling", "cancelled", "expired", "failed"):
        told["cancel_time"] = told["create_time"]
    if status == "expired":
        told["expire_time"] = told["cancel_time"]
    if status == "failed":
        errors = known["errors"]
        told["cancel_by_xai_message"] = errors["data"][0]["message"] if isinstance(errors, dict) else str(errors)
    return told


def results(content: bytes) -> list[Any]:
    """Result lines as xAI has them; lines that were torn are not among its pages, nor those of what was not worked on."""
    return [told for line in content.splitlines() if (told := result(line)) is not None]


def result(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    response, error = told["response"], told["error"]
    if response is None and error["code"] in ("batch_expired", "batch_cancelled"):
        return None
    if response is not None and response["status_code"] == 200:
        return {
            "batch_request_id": told["custom_id"],
            "batch_result": {"response": {"chat_get_completion": response["body"]}},
        }
    status = response["status_code"] if response else error["code"]
    return {"batch_request_id": told["custom_id"], "batch_result": {"error": {"code": status, "message": "ordered"}}}


def page(name: str, entries: list[Any], size: int, token: str | None) -> dict[str, Any]:
    """A page of a list."""
    start = int(token or 0)
    more = {"pagination_token": str(start + size)} if start + size < len(entries) else {}
    return {name: entries[start : start + size]} | more
