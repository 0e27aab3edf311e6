"""Rendering: rows become requests, here, or a fragment at a time in another process or on another machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from overnight.errors import HomeError
from overnight.job.cells import values_of
from overnight.job.job import Job
from overnight.rows.fragments import Fragment
from overnight.rows.requests import Requests, request_source
from overnight.store.files import make_private
from overnight.store.home import home_path
from overnight.store.objects import forget, is_there, keep

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Piece:
    """Some rows in their order, with their requests."""

    requests: Requests
    keys: list[str]
    """What `dataset.key` names each row by, as an error shows it; empty where the job has none."""
    null_keys: list[int]
    """Positions of the rows that it does not name."""


class Renderer:
    """Makes requests of rows of one schema."""

    def __init__(self, job: Job, schema: pa.Schema) -> None:
        """Compiles the job's templates; raises what `request_source` does."""
        self._key, self._source = list(job.dataset.key), request_source(job, schema)

    def pieces(self, batches: Iterable[pa.RecordBatch], first: int) -> Iterator[Piece]:
        """The requests of rows, a batch at a time.

        Args:
            batches: the rows.
            first: number of the first one, from 0, for messages.
        """
        for batch in batches:
            yield Piece(self._source(batch, first), *self.keys(batch))
            first += batch.num_rows

    def keys(self, batch: pa.RecordBatch) -> tuple[list[str], list[int]]:
        """The keys of some rows, and where one has none."""
        if not self._key:
            return [], []
        values = list(zip(*(values_of(batch[name]) for name in self._key), strict=True))
        shown = [", ".join(f"{name}={part!r}" for name, part in zip(self._key, value, strict=True)) for value in values]
        return shown, [at for at, value in enumerate(values) if None in value]


class Rendering(NamedTuple):
    """All that it takes to render a fragment: handed to whoever does it."""

    job: Job
    fragment: Fragment
    path: Path
    """The file that the pieces are written to."""
    digest: str | None
    """Of the fragment, where it is known already."""
    home: Path
    url: str | None = None
    """Of the home, for who has another working copy of it: the file is put there."""


class Rendered(NamedTuple):
    """What came of it."""

    digest: str
    sound: bool
    """Whether nothing is to be mended in the rows; else they are rendered once more, where their numbers are known."""


def render(rendering: Rendering) -> Rendered:
    """Renders a fragment into a file; the same fragment gives the same file, wherever and however often.

    Raises:
        DatasetError: its file cannot be read from here.
    """
    away = rendering.url is not None and home_path(rendering.url) != rendering.home
    path = rendering.path
    if away and rendering.url is not None:
        path = home_path(rendering.url) / path.relative_to(rendering.home)
    make_private(path.parent)
    path.touch(mode=0o600)
    fragment, encode, sound = rendering.fragment, msgspec.msgpack.Encoder().encode, True
    digest = (
        rendering.digest or fragment.digest()
    )  # before: of a file that grows meanwhile no row may be taken as known
    with path.open("wb") as file:
        for piece in Renderer(rendering.job, fragment.schema).pieces(fragment.batches(), 0):
            sound = sound and not piece.requests.problems
            packed = encode(piece)
            file.write(len(packed).to_bytes(_LENGTH_BYTES))
            file.write(packed)
    if rendering.url is not None:
        keep(path)
    if away:
        path.unlink()
    return Rendered(digest, sound)


def read_rendered(path: Path) -> Iterator[Piece]:
    """The pieces of a file that `render` wrote; it is gone afterwards.

    Raises:
        HomeError: it is not to be seen from here.
    """
    if not is_there(path):
        where = "give all machines a home in a bucket, or in a folder that they share"
        raise HomeError(f"{path} was written by a worker, and cannot be seen here: {where}")
    decode = msgspec.msgpack.Decoder(Piece).decode
    with path.open("rb") as file:
        while length := file.read(_LENGTH_BYTES):
            yield decode(file.read(int.from_bytes(length)))
    forget(path)


def key_problem(piece: Piece, position: int) -> str:
    """What is wrong with a key that is null or stands in an earlier row."""
    shown = piece.keys[position]
    return f"{shown} is null" if position in piece.null_keys else f"{shown} stands in an earlier row too"
