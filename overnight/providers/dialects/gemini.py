"""Gemini's batches (Developer API): files of their own kind, and lines of OpenAI's in them.

Sources: ai.google.dev/api/batch-api and its guide (states, `displayName`, `batchStats`), google-genai 3.6.1
(`batches.py`, `files.py`, `SingleEmbedContentResponse`), and for lines of OpenAI's form LiteLLM 1.110.2
(`llms/gemini/batches`); November 2026.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from overnight.job.task import EMBEDDINGS
from overnight.providers.dialects.dialect import Dialect, Order, Page, marked_name, marks_in, said, seconds_of
from overnight.providers.replies import RemoteBatch, RemoteError, RemoteFile, status_word
from overnight.text import printable


def _order(order: Order) -> Iterator[bytes]:
    return said({"batch": {"displayName": marked_name(order), "inputConfig": {"fileName": order.file_id}}})


def verb(url: str) -> str:
    """What a model is asked to do with a file of requests."""
    return "asyncBatchEmbedContent" if url == EMBEDDINGS else "batchGenerateContent"


def _line(line: bytes) -> bytes:
    """A line as it is uploaded: a chat completion's as it stands, an embedding's in Gemini's own form."""
    asked = msgspec.json.decode(line)
    if asked["url"] != EMBEDDINGS:
        return line
    body = asked["body"]
    request: dict[str, Any] = {"content": {"parts": [{"text": body["input"]}]}}
    if "dimensions" in body:
        request["output_dimensionality"] = body["dimensions"]
    return msgspec.json.encode({"key": asked["custom_id"], "request": request}) + b"\n"


def _refused(line: bytes) -> str | None:
    asked = msgspec.json.decode(line)
    if asked["url"] != EMBEDDINGS:
        return None
    body = asked["body"]
    if unknown := sorted(body.keys() - {"model", "input", "dimensions"}):
        return f"gemini's embeddings have no {unknown[0]!r}: leave it out of parameters"
    return None if isinstance(body["input"], str) else "gemini embeds one text a request"


def _page(page: Page) -> dict[str, str | int]:
    return {"pageSize": page.size, "pageToken": page.after} if page.after else {"pageSize": page.size}


def _has_more(reply: Mapping[str, Any], _page: Page) -> bool | None:
    return bool(reply.get("nextPageToken"))


def _token(reply: Mapping[str, Any], _last: str) -> str | None:
    return reply.get("nextPageToken")


def _entries(reply: Mapping[str, Any]) -> Any:
    """A page without entries is an empty object; one that says anything else is none."""
    nothing: list[Any] | None = [] if reply.keys() <= {"nextPageToken"} else None
    return next((reply[name] for name in ("operations", "files") if name in reply), nothing)


def _read(reply: Any) -> RemoteBatch | None:
    if not isinstance(reply, dict) or not isinstance(reply.get("name"), str):
        return None
    about = _dict(reply.get("metadata"))
    stats = _dict(about.get("batchStats"))
    output = _dict(about.get("output")) or _dict(reply.get("response"))
    error = _dict(reply.get("error"))
    return RemoteBatch(
        id=reply["name"],
        status=status_word(about.get("state")),
        input_file_id=_dict(about.get("inputConfig")).get("fileName"),
        output_file_id=output.get("responsesFile") or None,
        done=_count(stats, "successfulRequestCount"),
        failed=_count(stats, "failedRequestCount"),
        total=_count(stats, "requestCount"),
        created_at=seconds_of(about.get("createTime")),
        errors=(RemoteError(str(error.get("code")), printable(error.get("message") or ""), None),) if error else (),
        metadata=marks_in(about.get("displayName")),
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _count(stats: Mapping[str, Any], name: str) -> int | None:
    """Counts are text, as all long numbers in Google's JSON; zeros are left out."""
    if not stats:
        return None
    text = str(stats.get(name, 0))
    return int(text) if text.isdigit() else None


def read_file(reply: Any) -> RemoteFile | None:
    """A reply as a file; bare, or under `file` as an upload has it."""
    fields = reply.get("file", reply) if isinstance(reply, dict) else None
    if not isinstance(fields, dict) or not isinstance(fields.get("name"), str):
        return None
    ready = fields.get("state") not in ("PROCESSING", "STATE_UNSPECIFIED")
    size = str(fields.get("sizeBytes") or "")
    made = seconds_of(fields.get("createTime"))
    return RemoteFile(fields["name"], fields.get("displayName"), int(size) if size.isdigit() else None, ready, made)


def _headers(key: str) -> dict[str, str]:
    return {"x-goog-api-key": key}


GEMINI = Dialect(
    "/batches", _order, _page, _read, _has_more, evidence="its display name",
    entries=_entries, token=_token, read_file=read_file, headers=_headers, line=_line, refused=_refused,
)  # fmt: skip
