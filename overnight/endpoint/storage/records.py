"""Files and batches as the database holds them, and the JSON objects that clients see."""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

import msgspec

OPEN_STATUSES: Final = ("validating", "in_progress", "finalizing", "cancelling")
STATUSES: Final = (*OPEN_STATUSES, "completed", "failed", "expired", "cancelled")

MAX_METADATA: Final = 16
OFF_PEAK_KEY: Final = "overnight_off_peak"

MAX_WINDOW_SECONDS: Final = 14 * 86_400
_WINDOW: Final = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_UNIT_SECONDS: Final = {"m": 60, "h": 3_600, "d": 86_400}


def window_seconds(text: str) -> int:
    """Read a completion window: `24h`, or any `<n>m`, `<n>h` or `<n>d` up to 14 days.

    Raises:
        ValueError: with the accepted forms.
    """
    match = _WINDOW.fullmatch(text)
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_WINDOW_SECONDS:
        raise ValueError("must be '24h', or '<n>m', '<n>h' or '<n>d' up to 14 days")
    return seconds


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess, such as `batch_8f…`."""
    return f"{prefix}{uuid.uuid4().hex}"


@dataclass(frozen=True)
class StoredFile:
    """A file's row; times are Unix seconds. `filename` is only what the client called it, never a path here."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    expires_at: int | None = None

    def to_api(self) -> dict[str, Any]:
        """Return OpenAI's File object."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "status_details": None,
            "expires_at": self.expires_at,
        }


@dataclass(frozen=True)
class Batch:
    """A batch's row; times are Unix seconds, None until they happen. `errors` and `metadata` are JSON texts."""

    id: str
    status: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    metadata: str | None = None
    errors: str | None = None
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    total_tokens: int = 0
    output_expires_after: int | None = None
    """Seconds that the result files are kept, where the client said so."""
    off_peak: str | None = None
    """The name of the off-peak hours that the batch runs under, if any."""
    off_peak_lines: int = 0
    off_peak_tokens: int = 0

    @property
    def finished(self) -> int:
        """Lines with a result."""
        return self.completed + self.failed

    def to_api(self) -> dict[str, Any]:
        """Return OpenAI's Batch object with all its 22 fields."""
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": msgspec.json.decode(self.errors) if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "in_progress_at": self.in_progress_at,
            "expires_at": self.expires_at,
            "finalizing_at": self.finalizing_at,
            "completed_at": self.completed_at,
            "failed_at": self.failed_at,
            "expired_at": self.expired_at,
            "cancelling_at": self.cancelling_at,
            "cancelled_at": self.cancelled_at,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
            "usage": self._usage(),
            "metadata": self._metadata(),
        }

    def _metadata(self) -> dict[str, str] | None:
        """Return the client's pairs, and what the clock gave where there is room for one more."""
        pairs: dict[str, str] | None = msgspec.json.decode(self.metadata) if self.metadata else None
        if self.off_peak is None or len(pairs or {}) >= MAX_METADATA:
            return pairs
        gave = {
            "name": self.off_peak[:200],
            "off_peak_lines": self.off_peak_lines,
            "peak_lines": self.finished - self.off_peak_lines,
            "off_peak_tokens": self.off_peak_tokens,
            "peak_tokens": self.total_tokens - self.off_peak_tokens,
        }
        return {**(pairs or {}), OFF_PEAK_KEY: msgspec.json.encode(gave).decode()}

    def _usage(self) -> dict[str, Any]:
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.total_tokens,
        }


class Listed(Protocol):
    """What a list page can hold."""

    @property
    def id(self) -> str: ...  # noqa: D102 - a field of the records above

    def to_api(self) -> dict[str, Any]: ...  # noqa: D102 - as above


def page(records: Sequence[Listed], limit: int) -> dict[str, Any]:
    """Return OpenAI's list object for `records`, of which the caller fetched one more than `limit` if there is one."""
    shown = records[:limit]
    return {
        "object": "list",
        "data": [record.to_api() for record in shown],
        "first_id": shown[0].id if shown else None,
        "last_id": shown[-1].id if shown else None,
        "has_more": len(records) > limit,
    }
