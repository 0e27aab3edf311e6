"""Request files: a stream of lines cut under the provider's limits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from overnight.job.profiles import Profile
from overnight.ledger.records import NewShard
from overnight.rows.requests import Kind
from overnight.rows.tokens import BYTES_PER_TOKEN, estimated_tokens
from overnight.store.threads import WriteBehind


class Limit(NamedTuple):
    """The most that one shard may hold."""

    requests: int
    bytes: int
    """Newlines included."""


def shard_limit(profile: Profile) -> Limit:
    """A shard's limits at a provider; a shard above the token queue's limit could never be enqueued."""
    tokens = profile.max_enqueued_tokens
    size = min(profile.max_bytes, tokens * BYTES_PER_TOKEN) if tokens else profile.max_bytes
    return Limit(profile.max_requests, size)


def shard_hash(url: str, profile: Profile) -> hashlib.blake2b:
    """The start of a shard's key: the file's bytes are hashed into it."""
    return hashlib.blake2b(f"{url} {profile.name} {profile.base_url}\n".encode(), digest_size=16)


def file_key(path: Path, url: str, profile: Profile) -> str:
    """The key of a request file as it is on disk."""
    found = shard_hash(url, profile)
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


class ShardWriter:
    """Writes lines of one kind into files `<round>-<number>.jsonl`."""

    def __init__(
        self,
        folder: Path,
        round_: int,
        numbers: Iterator[int],
        profile: Profile,
        kind: Kind,
        attempt: int = 1,
        reask: int = 0,
        canary: int | None = None,
        first: int | None = None,
        trial: Limit | None = None,
    ) -> None:
        """Makes a writer; the first line makes the first file.

        Args:
            folder: where the files go.
            round_: the round of all its shards.
            numbers: gives each file its number, and is shared by the writers of a round.
            profile: whose limits count.
            kind: of all lines.
            attempt: of all requests.
            reask: how often their answers were invalid.
            canary: the round of the canary that they belong to.
            first: how many of the first requests are a canary of this round, in files of their own.
            trial: the most that the first file may hold, where tokens have to be counted before more is sent.
        """
        self._folder, self._round, self._numbers = folder, round_, numbers
        self._profile, self._kind, self._attempt, self._reask = profile, kind, attempt, reask
        self._canary, self._first = canary, first or 0
        whole = shard_limit(profile)
        self._limits = [Limit(*map(min, whole, trial)), whole] if trial else [whole]
        self._shards: list[NewShard] = []
        self._behind = WriteBehind()
        self._count = self._size = self._largest = 0

    def write(self, lines: Sequence[bytes]) -> None:
        """Appends lines, opening new files as the limits demand."""
        while lines:
            if not self._count:
                self._open()
            ends = list(accumulate(map(len, lines)))
            limit = self._limits[0]
            fit = min(int(np.searchsorted(ends, limit.bytes - self._size, side="right")),
                      min(limit.requests, self._first or limit.requests) - self._count)  # fmt: skip
            if fit > 0 or not self._count:
                fit = max(fit, 1)
                self._append(b"".join(lines[:fit]), fit)
                self._largest = max(self._largest, *map(len, lines[:fit]))
                lines = lines[fit:]
            if lines:
                self._close()

    def finish(self) -> list[NewShard]:
        """Ends the last file; returns all that were written."""
        if self._count:
            self._close()
        self._behind.close()
        return self._shards

    def discard(self) -> None:
        """Closes a file that an error left open; the staging folder goes with it."""
        self._behind.close()
        if self._count:
            self._stream.close()

    def _open(self) -> None:
        self._number = next(self._numbers)
        path = self._folder / f"{self._round:04d}-{self._number:04d}.jsonl"
        path.touch(mode=0o600)
        self._stream: BinaryIO = path.open("wb", buffering=1 << 20)
        self._count = self._size = self._largest = 0
        self._hash = shard_hash(self._kind.url, self._profile)

    def _append(self, text: bytes, count: int) -> None:
        self._behind.hand(self._write, text)
        self._count += count
        self._size += len(text)

    def _write(self, text: bytes) -> None:
        self._stream.write(text)
        self._hash.update(text)

    def _close(self) -> None:
        self._behind.wait()
        self._stream.close()
        self._shards.append(
            NewShard(
                round=self._round,
                number=self._number,
                key=self._hash.hexdigest(),
                requests=self._count,
                bytes=self._size,
                largest=self._largest,
                tokens=estimated_tokens(self._count, max(0, self._size - self._count * self._kind.frame)),
                model=self._kind.model,
                url=self._kind.url,
                provider=self._profile.queue,
                attempt=self._attempt,
                reask=self._reask,
                canary=self._round if self._first else self._canary,
            )
        )
        self._count, self._first = 0, max(0, self._first - self._count)
        self._limits = self._limits[-1:]
