"""What a dialect is: where batches are, what a create call says, and how a reply is read. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from overnight.providers.replies import RemoteBatch, RemoteFile, remote_file


class Order(NamedTuple):
    """A batch to be made."""

    file_id: str
    """Of the uploaded requests."""
    url: str
    """Their endpoint."""
    model: str
    """Of all of them; empty where each line names its own."""
    metadata: Mapping[str, str]
    """By which the batch is found again."""
    window: str
    """How long it may take, such as `24h`."""
    expires_outputs: bool
    """Whether to say how long result files are to be kept."""
    lines: Iterable[bytes] = ()
    """The requests themselves, for a dialect that takes no files."""


class Page(NamedTuple):
    """Which page of a listing is asked for."""

    number: int
    """From 0."""
    size: int
    after: str | None
    """What the page before said of the next one (`token`)."""


def bearer(key: str) -> dict[str, str]:
    """The headers of most."""
    return {"Authorization": f"Bearer {key}"}


def _data(reply: Mapping[str, Any]) -> Any:
    """Where most have the entries of a list."""
    return reply.get("data")


def _last_id(_reply: Mapping[str, Any], last: str) -> str | None:
    """Most take the id of a page's last entry."""
    return last


def said(body: Mapping[str, Any]) -> Iterator[bytes]:
    """A small body, in one piece."""
    yield msgspec.json.encode(body)


def seconds_of(stamp: Any) -> float | None:
    """A time such as `2026-11-27T06:00:00Z` in Unix seconds; None where it is none."""
    try:
        return datetime.fromisoformat(stamp).timestamp()
    except (TypeError, ValueError):
        return None


@dataclass(frozen=True)
class Dialect:
    """One form of the Batch API."""

    batches: str
    """The path of batches below the provider's address; `{path}/{id}` is one, and `{path}/{id}/cancel` ends it."""
    order: Callable[[Order], Iterator[bytes]]
    """The body of a create call, in pieces."""
    page: Callable[[Page], dict[str, str | int]]
    """The query of a page, of batches and of files alike."""
    read: Callable[[Any], RemoteBatch | None]
    """A reply as a batch; None where it is not one."""
    has_more: Callable[[Mapping[str, Any], Page], bool | None]
    """Whether a listing goes on after a page; None where its reply does not tell."""
    entries: Callable[[Mapping[str, Any]], Any] = _data
    """The entries of a list's page."""
    token: Callable[[Mapping[str, Any], str], str | None] = _last_id
    """What to ask the next page with, given the last entry's id."""
    read_file: Callable[[Any], RemoteFile | None] = remote_file
    """A reply as a file; None where it is not one."""
    headers: Callable[[str], Mapping[str, str]] = bearer
    """Those that carry the key."""
    refused: Callable[[bytes], str | None] | None = None
    """What in a line of a request file this dialect cannot say. None: it takes OpenAI's lines as they are."""
