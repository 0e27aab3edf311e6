"""What a provider's replies say: batches, their errors, and what a refusal means. Pure: replies in, facts out."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from overnight.errors import NotFound, OvernightError, ProviderError, ProviderUnavailable, QueueFull, Unauthorized
from overnight.text import printable

TERMINAL = frozenset({"completed", "failed", "expired", "cancelled"})
"""The statuses after which a batch does not change. Any other word means: not yet."""


STATUS_WORDS = {
    "success": "completed", "succeeded": "completed", "done": "completed", "canceled": "cancelled",
    "timeout_exceeded": "expired", "cancellation_requested": "cancelling", "in_queue": "validating",
    "queued": "validating", "running": "in_progress", "progress": "in_progress", "partially_succeeded": "completed",
}  # fmt: skip
"""Other providers' words for OpenAI's statuses (SiliconFlow, Novita, Mistral, Together, Gemini), in lower case."""


def status_word(word: Any) -> str:
    """A status in OpenAI's words; one that nobody knows passes through in lower case, and is not terminal."""
    lowered = printable(word or "unknown").lower().removeprefix("job_state_").removeprefix("batch_state_")
    return STATUS_WORDS.get(lowered, lowered)


_QUEUE_FULL = re.compile(
    r"token_limit_exceeded|enqueued token|queue.{0,20}full|too many batches|batches in progress", re.IGNORECASE
)
_NO_FILE_YET = re.compile(r"cannot find file|file\b.{0,80}\bnot (yet )?(been )?processed", re.IGNORECASE | re.DOTALL)
_NAMES_FILE = re.compile(r"invalid_file|\bfile\b|input_file_id", re.IGNORECASE)
_FATAL = re.compile(r"quota|billing|permission|api_key|unauthorized|account", re.IGNORECASE)


class RemoteError(NamedTuple):
    """One error of a whole batch, such as a line that failed validation."""

    code: str
    message: str
    line: int | None
    """Line of the input file, from 1."""


@dataclass(frozen=True)
class RemoteBatch:
    """A batch as the provider describes it, in OpenAI's words; what it does not say is None."""

    id: str
    status: str
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    done: int | None = None
    failed: int | None = None
    total: int | None = None
    created_at: float | None = None
    errors: tuple[RemoteError, ...] = ()
    metadata: Mapping[str, str] | None = None

    @property
    def queue_full(self) -> bool:
        """It failed because the account's queue is full, not because of its lines."""
        return self.status == "failed" and any(_QUEUE_FULL.search(f"{e.code} {e.message}") for e in self.errors)

    @property
    def file_missing(self) -> bool:
        """It failed because its input file is not there yet; seen right after uploads (openai-dotnet#312)."""
        return self.status == "failed" and any(_NO_FILE_YET.search(e.message) for e in self.errors)

    @property
    def fatal(self) -> bool:
        """It failed because of the account: every other batch would too."""
        return self.status == "failed" and any(_FATAL.search(e.code) for e in self.errors)

    @property
    def may_hold_answers(self) -> bool:
        """It names an output file or has counted answers: its files are read before it is judged."""
        return bool(self.output_file_id or self.done)

    @property
    def error_text(self) -> str | None:
        """The errors of the whole batch in one line."""
        said = [f"line {e.line}: {e.message}" if e.line else f"{e.code}: {e.message}" for e in self.errors[:5]]
        return "; ".join(said) or None


_NOT_READY = frozenset({"pending", "running", "notrunning", "processing"})


class RemoteFile(NamedTuple):
    """A file as the provider describes it; what it does not say is None."""

    id: str
    name: str | None
    bytes: int | None
    ready: bool
    """False while the provider says that it is still looking at it (Azure)."""
    created_at: float | None = None


def unwrapped(reply: Any) -> dict[str, Any]:
    """The object of a reply as a dict: bare, or in an envelope under `data` (SiliconFlow) or `job` (Together)."""
    fields = reply if isinstance(reply, dict) else reply.to_dict(warnings=False) if hasattr(reply, "to_dict") else {}
    for envelope in ("data", "job"):
        if fields.get("id") is None and isinstance(fields.get(envelope), dict):
            fields = fields[envelope]
    return dict(fields)


def remote_batch(reply: Any) -> RemoteBatch | None:
    """A reply as a batch; None where it is not one."""
    fields = unwrapped(reply)
    if not isinstance(fields.get("id"), str):
        return None
    counts = fields.get("request_counts")
    count: Callable[[str], int | None] = lambda name: (  # noqa: E731 - where there are counts at all
        whole_number(counts.get(name)) if isinstance(counts, dict) else None
    )
    metadata = fields.get("metadata")
    created = fields.get("created_at")
    return RemoteBatch(
        id=fields["id"],
        status=status_word(fields.get("status")),
        input_file_id=fields.get("input_file_id"),
        output_file_id=fields.get("output_file_id") or None,
        error_file_id=fields.get("error_file_id") or None,
        done=count("completed"),
        failed=count("failed"),
        total=count("total"),
        created_at=float(created) if isinstance(created, int | float) else None,
        errors=tuple(_errors(fields.get("errors"))),
        metadata={str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else None,
    )


def remote_file(reply: Any) -> RemoteFile | None:
    """A reply as a file; None where it is not one."""
    fields = unwrapped(reply)
    if not isinstance(fields.get("id"), str):
        return None
    ready = str(fields.get("status")).lower() not in _NOT_READY
    created = fields.get("created_at")
    made = float(created) if isinstance(created, int | float) else None
    return RemoteFile(fields["id"], fields.get("filename"), whole_number(fields.get("bytes")), ready, made)


def whole_number(value: Any) -> int | None:
    """A number of a reply; None where something else stands there."""
    return value if isinstance(value, int) else None


def _errors(errors: Any) -> Iterator[RemoteError]:
    """Errors as a list object (OpenAI), a bare list (DigitalOcean), or text (Novita)."""
    listed = errors.get("data") if isinstance(errors, dict) else errors
    for error in listed if isinstance(listed, list) else [listed] if listed else []:
        if isinstance(error, dict):
            yield RemoteError(
                printable(error.get("code") or "error"),
                printable(error.get("message") or ""),
                whole_number(error.get("line")),
            )
        else:
            yield RemoteError("error", printable(error), None)


def all_before(batches: list[RemoteBatch], since: float) -> bool:
    """Whether a page of a listing, newest first, holds only batches from before a time (Unix seconds)."""
    times = [batch.created_at for batch in batches if batch.created_at is not None]
    return len(times) == len(batches) and times == sorted(times, reverse=True) and times[0] < since


def refusal(status: int, said: str, call: str, address: str) -> OvernightError:
    """A reply with an error status as one of our errors.

    Args:
        status: HTTP status.
        said: code and message of the reply, short.
        call: what was asked.
        address: whom.
    """
    message = f"{address} answers {call} with HTTP {status}: {said}"
    if status in (401, 403):
        return Unauthorized(f"{message}; check the key")
    if status == 429 and "RESOURCE_EXHAUSTED" in said:  # Gemini speaks of billing then, and means a limit
        return QueueFull(message)
    if status == 402 or "insufficient_quota" in said or "billing" in said:
        return ProviderError(f"{message}; the account cannot pay")
    if _QUEUE_FULL.search(said):
        return QueueFull(message)
    if _NO_FILE_YET.search(said):
        return ProviderUnavailable(message)
    if status in (404, 405):
        return NotFound(message)
    if status in (408, 409, 429) or status >= 500:
        return ProviderUnavailable(message)
    return ProviderError(message)


def names_file(said: str, file_id: str) -> bool:
    """Whether a refusal of a create call is about its input file, which was uploaded a moment ago."""
    return file_id in said or _NAMES_FILE.search(said) is not None


def error_text(body: Any, code: str | None, otherwise: str) -> str:
    """What an error reply says, in short: its code and message, in whichever shape, or the start of its page."""
    if isinstance(body, dict):
        word = body.get("status") if isinstance(body.get("status"), str) else code  # Google's RESOURCE_EXHAUSTED
        body = body.get("message") or body.get("detail") or body.get("error") or body
        return printable(f"{word or ''} {body}".strip()[:300])
    return re.sub(r"\s+", " ", printable(body or otherwise)).strip()[:200]
