"""Batches of the provider that misbehaves in Anthropic's words, as anthropic 2.14.0 types them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

TYPES = {
    400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
    408: "timeout_error", 413: "request_too_large", 422: "invalid_request_error", 429: "rate_limit_error",
}  # fmt: skip
STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}


def lines(wanted: dict[str, Any]) -> bytes:
    """The requests of a create call as lines of the kind that the provider works on."""
    made = []
    for one in wanted["requests"]:
        params = one["params"]
        assert params["max_tokens"] > 0
        assert all(turn["role"] in ("user", "assistant") for turn in params["messages"])
        schema = ((params.get("output_config") or {}).get("format") or {}).get("schema")
        body = {"model": params["model"], "messages": params["messages"]}
        if any("cache_control" in part for part in params.get("system") or ()):
            body["cached"] = True
        if schema:
            body["response_format"] = {"json_schema": {"schema": schema}}
        made.append(json.dumps({"custom_id": one["custom_id"], "body": body}))
    return "".join(line + "\n" for line in made).encode()


def batch(known: dict[str, Any], requests: int, told: bytes, address: str) -> dict[str, Any]:
    """A batch as a `MessageBatch`."""
    status = known["status"]
    ended = status in ("completed", "expired", "cancelled", "failed")
    counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
    if ended:
        for line in told.splitlines():
            if (kind := kind_of(line)) is not None:
                counts[kind] += 1
    else:
        counts["processing"] = requests
    words = {"cancelling": "canceling"} if not ended else {}
    return {
        "id": known["id"], "type": "message_batch", "created_at": stamp(known["created_at"]),
        "expires_at": stamp(known["expires_at"]), "ended_at": stamp(known["created_at"]) if ended else None,
        "archived_at": None, "request_counts": counts,
        "cancel_initiated_at": stamp(known["created_at"]) if status in ("cancelling", "cancelled") else None,
        "processing_status": "ended" if ended else words.get(status, "in_progress"),
        "results_url": f"{address}/messages/batches/{known['id']}/results" if ended else None,
    }  # fmt: skip


def kind_of(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["result"]["type"])
    except ValueError:
        return None


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def results(output: bytes, error: bytes) -> bytes:
    """Both result files as one stream; a line that was torn stays torn."""
    return b"".join(result(line) + (b"\n" if line.endswith(b"\n") else b"") for line in [
        *output.splitlines(keepends=True), *error.splitlines(keepends=True)])  # fmt: skip


def result(line: bytes) -> bytes:
    """A result line in Anthropic's words."""
    try:
        told = json.loads(line)
    except ValueError:
        return line.strip()
    response, error = told["response"], told["error"]
    if response is None:
        kind = {"batch_expired": "expired", "batch_cancelled": "canceled"}.get(error["code"])
        said = {"type": kind} if kind else errored("api_error", error["message"])
    elif response["status_code"] == 200:
        said = {"type": "succeeded", "message": message(response["body"])}
    else:
        said = errored(TYPES.get(response["status_code"], "api_error"), f"ordered {response['status_code']}")
    return json.dumps({"custom_id": told["custom_id"], "result": said}).encode()


def errored(kind: str, text: str) -> dict[str, Any]:
    error = {"type": "error", "error": {"type": kind, "message": text}, "request_id": "req_1"}
    return {"type": "errored", "error": error}


def message(completion: dict[str, Any]) -> dict[str, Any]:
    """A chat completion as a message."""
    (choice,) = completion["choices"]
    said = choice["message"]
    text = said["refusal"] or said["content"]
    told = completion["usage"]
    written = told.get("written", 0)
    usage = {"input_tokens": told["prompt_tokens"], "output_tokens": told["completion_tokens"],
             "cache_read_input_tokens": 0, "cache_creation_input_tokens": written, "service_tier": "batch",
             "cache_creation": {"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": written}}  # fmt: skip
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": completion["model"],
        "content": [{"type": "text", "text": text, "citations": None}], "stop_sequence": None, "usage": usage,
        "stop_reason": "refusal" if said["refusal"] else STOPS[choice["finish_reason"]],
    }  # fmt: skip
