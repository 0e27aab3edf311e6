"""Batches and files of the provider that misbehaves in Gemini's words, as google-genai 3.6.1 reads them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from google.genai.types import SingleEmbedContentResponse

STATES = {
    "validating": "PENDING", "in_progress": "RUNNING", "finalizing": "RUNNING", "completed": "SUCCEEDED",
    "failed": "FAILED", "expired": "EXPIRED", "cancelling": "RUNNING", "cancelled": "CANCELLED",
}  # fmt: skip


def order(wanted: dict[str, Any], model: str) -> dict[str, Any]:
    """What a create call wants, as OpenAI words it."""
    batch = wanted["batch"]
    return {
        "input_file_id": batch["inputConfig"]["fileName"].removeprefix("files/"), "endpoint": "/v1/chat/completions",
        "completion_window": "24h", "metadata": {"name": batch["displayName"]}, "model": model,
    }  # fmt: skip


def lines(content: bytes) -> bytes:
    """Embedding requests as lines of the kind that the provider works on."""
    found = []
    for line in content.splitlines():
        asked = json.loads(line)
        (part,) = asked["request"]["content"]["parts"]
        found.append(json.dumps({"custom_id": asked["key"], "body": {"input": part["text"]}}))
    return "".join(one + "\n" for one in found).encode()


def operation(batch: dict[str, Any] | None) -> dict[str, Any] | None:
    """A batch as a long-running operation."""
    if batch is None:
        return None
    ended = batch["status"] in ("completed", "failed", "expired", "cancelled")
    output = (batch["output_file_id"] or batch["error_file_id"]) and batch["status"] != "expired"
    counts = dict(batch["request_counts"] or {})
    if batch["status"] == "expired":
        counts["failed"] = 0  # what was not worked on is nobody's failure
    stats = {"requestCount": counts.get("total"), "successfulRequestCount": counts.get("completed"),
             "failedRequestCount": counts.get("failed")}  # fmt: skip
    about = {
        "@type": "type.googleapis.com/google.ai.generativelanguage.v1main.GenerateContentBatch",
        "model": f"models/{batch.get('model')}", "displayName": (batch["metadata"] or {}).get("name"),
        "inputConfig": {"fileName": f"files/{batch['input_file_id']}"}, "createTime": stamp(batch["created_at"]),
        "updateTime": stamp(batch["created_at"]), "state": f"BATCH_STATE_{STATES[batch['status']]}",
        "batchStats": {name: str(value) for name, value in stats.items() if value},
    }  # fmt: skip
    if ended:
        about["endTime"] = stamp(batch["created_at"])
    if output:
        about["output"] = {"responsesFile": f"files/results-{batch['id']}"}
    found: dict[str, Any] = {"name": f"batches/{batch['id']}", "metadata": about}
    if ended:
        found["done"] = True
    if isinstance(batch["errors"], dict) and batch["errors"]["data"]:
        found["error"] = {"code": 3, "message": batch["errors"]["data"][0]["message"]}
    return found


def described(file: dict[str, Any] | None) -> dict[str, Any] | None:
    """A file."""
    if file is None:
        return None
    return {
        "name": f"files/{file['id']}", "displayName": file["filename"], "mimeType": "application/jsonl",
        "sizeBytes": str(file["bytes"]), "createTime": stamp(file["created_at"]), "state": "ACTIVE",
        "uri": f"https://example.invalid/files/{file['id']}",
    }  # fmt: skip


def page(name: str, entries: list[Any], size: int, token: str | None) -> dict[str, Any]:
    """A page of a list; an empty one has no entries at all."""
    start = int(token or 0)
    found = {name: entries[start : start + size]} if entries[start : start + size] else {}
    return found | ({"nextPageToken": str(start + size)} if start + size < len(entries) else {})


def results(lines: bytes) -> bytes:
    """A result file: usage in Gemini's words."""
    return b"".join(result(line) for line in lines.splitlines(keepends=True))


def result(line: bytes) -> bytes:
    try:
        told = json.loads(line)
        usage = told["response"]["body"].pop("usage")
    except (ValueError, KeyError, TypeError):
        return line
    if "data" in told["response"]["body"]:
        vector = told["response"]["body"]["data"][0]["embedding"]
        single = SingleEmbedContentResponse.model_validate(
            {"embedding": {"values": vector}, "tokenCount": usage["prompt_tokens"]}
        )
        response = single.model_dump(mode="json", by_alias=True, exclude_none=True)
        return json.dumps({"key": told["custom_id"], "response": response}).encode() + b"\n"
    given, made = usage["prompt_tokens"], usage["completion_tokens"]
    told["response"]["body"]["usage"] = {"promptTokens": given, "completionTokens": made, "totalTokens": given + made}
    return json.dumps(told).encode() + b"\n"


def stamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
