"""Request lines of a batch file, and the ids in them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

CUSTOM_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class RequestLines(NamedTuple):
    """Requests, ready to be sent."""

    ids: list[str]
    lines: list[bytes]
    """JSON with its newline, one per id."""


def request_lines(name: str, url: str, bodies: list[bytes], salts: list[bytes] | None = None) -> RequestLines:
    """Bodies as lines of a batch file.

    Args:
        name: the job's, which starts every id.
        url: the endpoint, the same for all.
        bodies: canonical JSON.
        salts: mixed into the ids, one per body, to send equal bodies more than once.
    """
    hashed = bodies if salts is None else [b"%b\0%b" % pair for pair in zip(bodies, salts, strict=True)]
    digests = list(map(_digester(url), hashed))
    pattern = b'%b%b-%%b","method":"POST","url":%b,"body":%%b}\n' % (
        _START,
        name.encode(),
        msgspec.json.encode(url),
    )
    lines = [pattern % pair for pair in zip(map(str.encode, digests), bodies, strict=True)]
    return RequestLines([f"{name}-{digest}" for digest in digests], lines)


def _digester(url: str) -> Callable[[bytes], str]:
    """Hashes bodies behind a url; copying a started hash is faster than starting it with a key."""
    started = hashlib.blake2b(url.encode() + b"\n", digest_size=16)

    def digest(body: bytes) -> str:
        found = started.copy()
        found.update(body)
        return found.hexdigest()

    return digest


BUFFER_BYTES = 1 << 16
"""Of files of long lines: they are read in half the time."""
_START = b'{"custom_id":"'


class _Id(msgspec.Struct):
    custom_id: str


_decode_id = msgspec.json.Decoder(_Id).decode
_FROM = len(_START)


def custom_id_of(line: bytes) -> str:
    """The id of a request line: read off where it stands as we write it, else out of the JSON that a person wrote.

    A line that names two is refused when it is built (`overnight.rows.requests`).
    """
    if line.startswith(_START):
        found = line[_FROM : line.index(b'"', _FROM)]
        if b"\\" not in found:
            return found.decode()
    return _decode_id(line).custom_id


def custom_ids(path: Path) -> Iterator[str]:
    """The ids of a request file, in its order."""
    with path.open("rb", BUFFER_BYTES) as lines:
        yield from map(custom_id_of, lines)
