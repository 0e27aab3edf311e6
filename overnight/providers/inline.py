"""A provider without files: a create call carries the requests, and results are a stream of their batch."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import httpx2
import openai

from overnight.errors import ProviderUnavailable
from overnight.providers.dialects.dialect import Order
from overnight.providers.download import receive
from overnight.providers.provider import Provider, check_time, posted
from overnight.providers.replies import RemoteFile
from overnight.rows.lines import custom_id_of

SECONDS_PER_MB = 4
"""A time limit that 200 MB over a home line keep; a lost reply is looked for longer (`lost_reply_seconds`)."""
SECONDS = 120
"""For a small body, and for the reply to any."""
_PIECE = 1 << 20


class InlineProvider(Provider):
    """The same calls; what is a file elsewhere is a name here."""

    def upload(self, path: Path, name: str | None = None) -> RemoteFile:
        """Nothing is sent before the create call."""
        return RemoteFile(name or path.name, name, path.stat().st_size, ready=True)

    def _ordered(self, once: openai.OpenAI, order: Order, until: float) -> Any:
        """Sends the requests, from a file: their size is told before, and they need no memory."""
        with tempfile.TemporaryFile() as content:
            content.writelines(self.dialect.order(order))
            size = content.tell()
            content.seek(0)
            seconds = max(SECONDS, size / 1e6 * SECONDS_PER_MB)
            check_time(until)
            return posted(once, self.dialect.batches, _hurried(content, seconds), size)

    def file(self, file_id: str) -> RemoteFile | None:
        """What has only a name is ready."""
        return RemoteFile(file_id, file_id, None, ready=True)

    def files(self) -> Iterator[RemoteFile]:
        """There are none."""
        yield from ()

    def delete(self, file_id: str) -> None:
        """Results go with their batch, which the provider deletes when it does."""

    def _download_once(self, file_id: str, path: Path) -> int:
        def is_whole(part: Path) -> bool:
            """One line for each request: streams have no length, and may end after any line."""
            with part.open("rb") as lines:
                found = sum(1 for line in lines if line.strip())
            return found >= (self.retrieve(file_id).total or 0)

        with self._results(file_id) as reply:
            return receive(reply, file_id, path, lambda: None, is_whole)

    @contextmanager
    def _results(self, batch_id: str) -> Iterator[httpx2.Response]:
        """The results of an ended batch. Redirects are not followed: the key would go with them."""
        call, address = f"download {batch_id}", f"{self.address.rstrip('/')}{self._path(batch_id)}/results"
        with (
            self._translated(call),
            httpx2.Client(timeout=600, headers=self._headers) as client,
            client.stream("GET", address) as reply,
        ):
            self._check(reply, call)
            yield reply

    def first_custom_id(self, batch_id: str) -> str | None:
        """The id of the first result of an ended batch: it proves whose the batch is; None where it has no results.

        Raises:
            ProviderUnavailable: they cannot be read for now.
        """
        with self._results(batch_id) as reply:
            line = next((one for one in reply.iter_lines() if one.strip()), None)
        if line is None:
            return None
        try:
            return custom_id_of(line.encode())
        except ValueError as error:
            raise ProviderUnavailable(f"the results of {batch_id} cannot be read: {error}") from None


def _hurried(content: IO[bytes], seconds: float) -> Iterator[bytes]:
    """A body in pieces, none of which is sent late: the client's own time limit begins anew with each.

    Raises:
        WriteTimeout: it took too long; the server has a part of it, and can have made no batch.
    """
    until = time.monotonic() + seconds
    while piece := content.read(_PIECE):
        if time.monotonic() > until:
            raise httpx2.WriteTimeout(f"the requests were not sent within {seconds:.0f} s")
        yield piece
