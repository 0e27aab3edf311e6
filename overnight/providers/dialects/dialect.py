"""What a dialect is: where batches are, what a create call says, and how a reply is read. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from overnight.providers.replies import RemoteBatch, RemoteFile, remote_file

_VERSION = re.compile(r"^/v\d+(?=/)")


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
    caches_system: bool = False
    """Whether a shared system text is marked to be cached."""


class Page(NamedTuple):
    """Which page of a listing is asked for."""

    number: int
    """From 0."""
    size: int
    after: str | None
    """What the page before said of the next one (`token`)."""


_NAME = re.compile(r"overnight-([0-9a-f]+)-([0-9a-f]+)-(.+)")
_MARKS = ("overnight_attempt", "overnight_shard", "overnight_job")


def marked_name(order: Order) -> str:
    """The name of a batch that can have no metadata: the attempt's token, the shard's key, and the job."""
    return "-".join(["overnight", *(order.metadata[mark] for mark in _MARKS)])


def marks_in(name: Any) -> dict[str, str] | None:
    """What a batch's name says of it; None where it is not ours."""
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    return dict(zip(_MARKS, found.groups(), strict=True)) if found else None


def bearer(key: str) -> dict[str, str]:
    """The headers of most."""
    return {"Authorization": f"Bearer {key}"}


def _data(reply: Mapping[str, Any]) -> Any:
    """Where most have the entries of a list."""
    return reply.get("data")


def _last_id(_reply: Mapping[str, Any], last: str) -> str | None:
    """Most take the id of a page's last entry."""
    return last


class Question(NamedTuple):
    """A request in real time."""

    path: str
    """Below the provider's address."""
    body: Mapping[str, Any]


def question(line: bytes) -> Question:
    """A line of a request file as most take it in real time: its url, whose version is the address's, and its body."""
    asked = msgspec.json.decode(line)
    return Question(_VERSION.sub("", asked["url"]), asked["body"])


def answer(custom_id: str, status: int, body: Any) -> dict[str, Any]:
    """The reply to a request as a line of a result file."""
    return {"custom_id": custom_id, "response": {"status_code": status, "body": body}}


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
    evidence: str = "its metadata, else its input file"
    """By what a batch is known again whose create call got no reply."""
    entries: Callable[[Mapping[str, Any]], Any] = _data
    """The entries of a list's page."""
    token: Callable[[Mapping[str, Any], str], str | None] = _last_id
    """What to ask the next page with, given the last entry's id."""
    read_file: Callable[[Any], RemoteFile | None] = remote_file
    """A reply as a file; None where it is not one."""
    headers: Callable[[str], Mapping[str, str]] = bearer
    """Those that carry the key."""
    question: Callable[[bytes], Question] = question
    """A line of a request file as a request in real time."""
    answer: Callable[[str, int, Any], dict[str, Any]] = answer
    """The reply to it, by custom_id, status and body, as a line of a result file."""
    line: Callable[[bytes], bytes] | None = None
    """A line of a request file as it is uploaded. None: all are as they stand."""
    refused: Callable[[bytes], str | None] | None = None
    """What in a line of a request file this dialect cannot say. None: it takes OpenAI's lines as they are."""
