"""The rows of a build with their requests: rendered here or by the runner, or known from the build before.

A fragment of the dataset whose bytes are those of an earlier build, and whose requests are all answered or on their
way, is not rendered again: what the map of rows says of it stands. So some rows more than a million cost what those
rows cost, and a look at the map.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec
import pyarrow as pa

from overnight.errors import LedgerError, OvernightError
from overnight.job.job import Job
from overnight.job.prompt import compile_prompt, definition_of
from overnight.job.task import Raw
from overnight.job.template import Template
from overnight.ledger.built_rows import RowMap
from overnight.ledger.run import Run
from overnight.rows.dataset import Rows
from overnight.rows.fragments import Fragment
from overnight.rows.ids import IdSet, id_hashes
from overnight.rows.rendering import Piece, Renderer, Rendering, read_rendered, render
from overnight.rows.requests import Requests
from overnight.store.objects import address, is_shared, is_there
from overnight.store.parquet import notes_of, read_rows
from overnight.store.spread import is_elsewhere, runner_for, spread

NOTE = "fragments"
"""Under which the map of rows says what it was made of."""


class Span(NamedTuple):
    """Some rows of a map, one after the other."""

    first: int
    rows: int


class Made(msgspec.Struct, frozen=True):
    """What a map of rows was made of."""

    recipe: str
    """A hash of what decides, beside the rows, which request a row makes."""
    fragments: list[tuple[str, int]]
    """Digest and rows of each, in their order."""

    def spans(self) -> dict[str, Span]:
        """Where the rows of each fragment stand in the map."""
        found, first = {}, 0
        for digest, rows in self.fragments:
            found[digest] = Span(first, rows)
            first += rows
        return found


def recipe_of(job: Job, schema: pa.Schema) -> str | None:
    """A hash of what decides, beside the row, which request it makes.

    None where more does: a file that it names, the rows before it, or with which body its id was sent before.
    """
    if job.is_request_file or not (job.deduplicate or job.dataset.key):
        return None
    if not isinstance(job.task, Raw) and not all(
        isinstance(slot, str | Template) for slot in compile_prompt(job, schema).slots
    ):
        return None
    about = (
        version("overnight"),
        job.name,
        definition_of(job),
        job.deduplicate,
        job.dataset.key,
        job.profile.max_bytes,
    )
    return hashlib.blake2b(msgspec.json.encode(about) + schema.to_string().encode(), digest_size=16).hexdigest()


class Pieces:
    """Iterates over the rows of a build."""

    def __init__(self, run: Run, rows: Rows, staging: Path, known: IdSet) -> None:
        """Compiles the job's templates.

        Args:
            run: the job.
            rows: its dataset.
            staging: where workers write what they made, for as long as it is not read.
            known: the requests that are not to be sent.
        """
        self._run, self._rows, self._staging, self._known = run, rows, staging, known
        self._renderer = Renderer(run.job, rows.schema)
        alone = run.job.deduplicate or run.job.dataset.key
        self._fragments = rows.fragments if alone else ()
        self._recipe = recipe_of(run.job, rows.schema)
        self._made: list[tuple[str, int]] = []
        self._count = 0

    def note(self) -> dict[str, bytes]:
        """What the map was made of, once it is; for the map itself to keep."""
        return {NOTE: msgspec.json.encode(Made(self._recipe, self._made))} if self._recipe and self._made else {}

    def __iter__(self) -> Iterator[Piece]:
        """All rows in their order.

        Raises:
            DatasetError: they cannot be read.
        """
        if not self._fragments:
            yield from self._renderer.pieces(self._rows.batches(), 0)
            return
        path, earlier = self._earlier()
        digests = [fragment.digest() if earlier else None for fragment in self._fragments]
        spans = [self._settled(path, earlier.get(digest or "")) for digest in digests]
        todo = [
            (one, digest) for one, digest, span in zip(self._fragments, digests, spans, strict=True) if span is None
        ]
        rendered = self._rendered(todo)
        for fragment, known, span in zip(self._fragments, digests, spans, strict=True):
            first = self._count
            pieces, digest = next(rendered) if span is None else (self._mapped(path, span, fragment), known)
            for piece in pieces:
                self._count += len(piece.requests.ids)
                yield piece
            self._made.append((digest or "", self._count - first))

    def _earlier(self) -> tuple[Path, dict[str, Span]]:
        """The map of the build before and what it was made of; nothing where that was in another way."""
        record = self._run.ledger.job(self._run.job.name)
        if self._recipe is None or record is None or record.build is None:
            return Path(), {}
        path = self._run.folder.rows(record.build)
        try:
            notes = notes_of(path) if is_there(path) else {}
        except LedgerError:  # it is made anew
            return path, {}
        if notes.get("build", b"").decode() != record.build or NOTE not in notes:
            return path, {}
        made = msgspec.json.decode(notes[NOTE], type=Made)
        return path, made.spans() if made.recipe == self._recipe else {}

    def _settled(self, path: Path, span: Span | None) -> Span | None:
        """A span of the earlier map, if none of its requests is to be sent."""
        if span is None:
            return None
        for batch in read_rows(path, span.first, span.rows):
            if not self._known.contains(id_hashes(batch["custom_id"].drop_null().to_pylist())).all():
                return None
        return span

    def _mapped(self, path: Path, span: Span, fragment: Fragment) -> Iterator[Piece]:
        """Rows as the earlier map has them; their lines are not made, as nobody will ask for them."""
        mapped = read_rows(path, span.first, span.rows)
        if not self._run.job.dataset.key:
            yield from (Piece(_requests_of(batch), [], []) for batch in mapped)
            return
        row_map = RowMap(mapped)
        for batch in fragment.batches():
            yield Piece(_requests_of(row_map.take(batch.num_rows)), *self._renderer.keys(batch))

    def _rendered(self, todo: list[tuple[Fragment, str | None]]) -> Iterator[tuple[Iterator[Piece], str | None]]:
        """The requests of each fragment, and its digest."""
        runner = runner_for(len(todo), sum(fragment.size for fragment, _ in todo))
        if is_elsewhere(runner) and not self._staging.is_relative_to(self._run.home):
            runner = "threads"  # a plan writes to no home
        if runner == "threads":
            for fragment, digest in todo:
                known = digest or (fragment.digest() if self._recipe else None)
                yield self._renderer.pieces(fragment.batches(), self._count), known
            return
        handed = list(self._renderings(todo, runner))
        for one, done in zip(handed, spread(render, handed, runner), strict=True):
            if isinstance(done, OvernightError):
                raise done
            sound = read_rendered(one.path)
            again = self._renderer.pieces(one.fragment.batches(), self._count)
            yield sound if done.sound else again, done.digest

    def _renderings(self, todo: list[tuple[Fragment, str | None]], runner: str) -> Iterator[Rendering]:
        home, token = self._run.home, uuid4().hex[:8]
        url = address(home) if is_elsewhere(runner) and is_shared(home) else None
        folder = self._staging if url is None else self._run.folder.fragments
        for number, (fragment, digest) in enumerate(todo):
            yield Rendering(self._run.job, fragment, folder / f"{token}-{number:05d}.rendered", digest, home, url)


def _requests_of(mapped: pa.RecordBatch) -> Requests:
    ids, codes, messages = (mapped[name].to_pylist() for name in ("custom_id", "error_code", "error_message"))
    errors = {at: (code, messages[at] or "") for at, code in enumerate(codes) if code is not None}
    return Requests([one or "" for one in ids], [], (), errors)
