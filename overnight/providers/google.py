"""Gemini's calls, where they are others than those of everybody with files: names as paths, uploads in two steps."""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit

import httpx2
import openai

from overnight.errors import NotFound, ProviderUnavailable
from overnight.providers.dialects.dialect import Order
from overnight.providers.dialects.gemini import read_file, verb
from overnight.providers.download import receive
from overnight.providers.provider import (
    UPLOAD_SECONDS_PER_MB,
    Provider,
    arrived,
    check_time,
    lines_of,
    posted,
    unredirected,
)
from overnight.providers.replies import RemoteFile


class GoogleProvider(Provider):
    """The same calls; batches and files have names such as `batches/abc`."""

    _cancels = ":cancel"

    def _path(self, batch_id: str) -> str:
        return f"/{quote(batch_id, safe='/')}"

    def _ordered(self, once: openai.OpenAI, order: Order, until: float) -> Any:
        model = quote(order.model.removeprefix("models/"), safe="")
        check_time(until)
        body = b"".join(self.dialect.order(order))
        return posted(once, f"/models/{model}:{verb(order.url)}", body, len(body))

    @cached_property
    def _openai(self) -> openai.OpenAI:
        """OpenAI's form has an address of its own there, and takes the key as OpenAI does."""
        address = f"{self.address.rstrip('/')}/openai"
        return openai.OpenAI(
            base_url=address,
            api_key=self._client.api_key,
            http_client=unredirected("OpenAI-Organization", "OpenAI-Project"),
        )

    def _real_time_client(self) -> openai.OpenAI:
        return self._openai

    def close(self) -> None:
        """Closes its connections."""
        super().close()
        self._openai.close()

    def upload(self, path: Path, name: str | None = None) -> RemoteFile:
        """Uploads a request file: an address is asked for, and takes the bytes. Costs nothing."""
        shown = name or path.name
        with tempfile.TemporaryFile() as said:  # its size is told before
            said.writelines(map(self.dialect.line, lines_of(path)) if self.dialect.line else lines_of(path))
            size = said.tell()
            said.seek(0)
            return self._upload(said, size, shown)

    def _upload(self, stream: IO[bytes], size: int, shown: str) -> RemoteFile:
        there = urlsplit(self.address)
        begin = f"{there.scheme}://{there.netloc}/upload{there.path.rstrip('/')}/files"
        kind = "application/jsonl"
        asked = {
            "X-Goog-Upload-Protocol": "resumable", "X-Goog-Upload-Command": "start",
            "X-Goog-Upload-Header-Content-Length": str(size), "X-Goog-Upload-Header-Content-Type": kind,
        }  # fmt: skip
        seconds = max(600.0, size / 1e6 * UPLOAD_SECONDS_PER_MB)
        with self._translated("upload"), httpx2.Client(timeout=seconds) as client:
            about = {"file": {"displayName": shown, "mimeType": kind}}
            started = client.post(begin, headers=self._headers | asked, json=about)
            self._check(started, "upload")
            address = started.headers.get("X-Goog-Upload-URL", "")
            if urlsplit(address).netloc != there.netloc:
                raise ProviderUnavailable(f"an upload was answered with the address {address[:80]!r}")
            command = {"X-Goog-Upload-Offset": "0", "X-Goog-Upload-Command": "upload, finalize"}
            ended = client.post(address, headers=command, content=stream)
            self._check(ended, "upload")
        return arrived(read_file(_json(ended)), shown, size)

    def file(self, file_id: str) -> RemoteFile | None:
        """Looks at a file; None where the provider does not tell."""
        try:
            return read_file(self._client.get(f"/{quote(file_id, safe='/')}", cast_to=object))
        except (openai.OpenAIError, httpx2.HTTPError):
            return None

    def delete(self, file_id: str) -> None:
        """Deletes a file; one that is gone already is fine: they are kept for 48 hours."""
        try:
            with self._translated(f"delete {file_id}"):
                self._client.delete(f"/{quote(file_id, safe='/')}", cast_to=object)
        except NotFound:
            return

    def _download_once(self, file_id: str, path: Path) -> int:
        address = f"{self.address.rstrip('/')}/{quote(file_id, safe='/')}:download"
        with (
            self._translated(f"download {file_id}"),
            httpx2.Client(timeout=600, headers=self._headers) as client,
            client.stream("GET", address, params={"alt": "media"}) as reply,
        ):
            self._check(reply, f"download {file_id}")
            return receive(reply, file_id, path, lambda: self._size(file_id))


def _json(reply: httpx2.Response) -> Any:
    try:
        return reply.json()
    except ValueError:
        return None
