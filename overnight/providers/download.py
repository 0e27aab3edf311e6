"""Downloads: streamed beside their place, checked, then put there whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import httpx2

from overnight.errors import DownloadCut, NotFound, ProviderUnavailable
from overnight.providers.keys import is_private
from overnight.store.files import atomic_path

_CHUNK = 1 << 18


class Reply(Protocol):
    """A reply whose body is still to come: the SDK's, or httpx2's."""

    @property
    def headers(self) -> httpx2.Headers:
        """With `content-length`, where the server says it."""

    def iter_bytes(self, chunk_size: int | None = None) -> Iterator[bytes]:
        """The body."""


def is_address(file_id: str) -> bool:
    """Whether a file id is a URL to be fetched as it is (SiliconFlow)."""
    return file_id.startswith(("http://", "https://"))


def refuse_private(base_url: str) -> Callable[[httpx2.Request], None]:
    """A check of every request, redirects included, of a file's address: what a reply names may be anything.

    Args:
        base_url: the provider's; where it is itself on this machine or a private network, so may its files be.
    """

    def check(request: httpx2.Request) -> None:
        if is_private(str(request.url)) and not is_private(base_url):
            raise ProviderUnavailable(
                f"the provider names a result file at {request.url.host}, on this machine or a private network: "
                "it is not fetched"
            )

    return check


@contextmanager
def opened_address(address: str, base_url: str) -> Iterator[Reply]:
    """A file at a URL, streamed, without the key: it need not be the provider's own.

    Args:
        address: of the file.
        base_url: the provider's.

    Raises:
        NotFound: it is gone.
        ProviderUnavailable: it answers with another error, or the address is private.
    """
    hooks = {"request": [refuse_private(base_url)]}
    with (
        httpx2.Client(follow_redirects=True, timeout=600, event_hooks=hooks) as client,
        client.stream("GET", address) as reply,
    ):
        if reply.status_code == 404:
            raise NotFound("the result's address answers 404: it has expired")
        if reply.status_code >= 400:
            raise ProviderUnavailable(f"the result's address answers HTTP {reply.status_code}")
        yield reply


def receive(
    reply: Reply,
    file_id: str,
    path: Path,
    size: Callable[[], int | None],
    is_whole: Callable[[Path], bool] | None = None,
) -> int:
    """Writes a reply's body to `path`, whole or not at all; returns its bytes.

    Args:
        reply: whose headers were read.
        file_id: for messages.
        path: where the file goes.
        size: asks the provider how large the file is: a reply without a length can end anywhere unnoticed.
        is_whole: whether what arrived is all, where nobody tells how large it is; its last line has to be whole too.

    Raises:
        DownloadCut: fewer bytes arrived than were announced, or a page or an error in their place.
    """
    with atomic_path(path) as part:
        if reply.headers.get("x-incomplete", "").lower() == "true":  # Doubleword streams what is done so far
            raise DownloadCut(f"{file_id} is not complete yet")
        arrived = _written(reply, file_id, part)
        announced: str | int | None = reply.headers.get("content-length")
        if announced is None or reply.headers.get("content-encoding"):
            announced = size()
        if (
            (int(announced) != arrived)
            if announced is not None
            else not (_ends_whole(part) and (is_whole is None or is_whole(part)))
        ):
            raise DownloadCut(f"the download of {file_id} has {arrived:,} of {announced or 'more'} bytes")
        if (said := _no_results(part)) is not None:
            raise DownloadCut(f"the download of {file_id} is no result file but: {said}")
        return arrived


def _written(reply: Reply, file_id: str, part: Path) -> int:
    arrived = 0
    try:
        with part.open("wb") as stream:
            for chunk in reply.iter_bytes(_CHUNK):
                stream.write(chunk)
                arrived += len(chunk)
    except httpx2.RemoteProtocolError as error:
        raise DownloadCut(f"the download of {file_id} was cut after {arrived:,} bytes: {error}") from None
    return arrived


def _no_results(part: Path) -> str | None:
    """The start of what is a page of HTML or an error object rather than result lines; None: it may be results.

    Read as results, its requests would all be missing, and be paid for again.
    """
    with part.open("rb") as stream:
        first, more = stream.readline(1 << 16).lstrip(b"\xef\xbb\xbf \t\r\n"), stream.readline(1)
    if first.startswith(b"<"):
        return first[:80].decode(errors="replace")
    try:
        only = None if more else json.loads(first)
    except ValueError:
        return None
    is_error = isinstance(only, dict) and "custom_id" not in only and only.keys() & {"error", "detail", "message"}
    return first[:200].decode(errors="replace") if is_error else None


def _ends_whole(path: Path) -> bool:
    """Whether the last line of a file is whole JSON."""
    with path.open("rb") as stream:
        last = b""
        for line in stream:
            last = line if line.strip() else last
    try:
        json.loads(last or b"{}")
    except ValueError:
        return False
    return True
