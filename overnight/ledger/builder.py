"""A build: rows stream in; request files, and a map from rows to custom_ids, come out in a staging folder."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import count
from pathlib import Path
from uuid import uuid4

import msgspec
import numpy as np
import pyarrow as pa

from overnight.errors import MOST_PROBLEMS, DatasetError, InvalidRequests, Problem
from overnight.job.job import Job
from overnight.ledger.records import NewShard
from overnight.ledger.shards import Limit, ShardWriter
from overnight.rows.ids import IdSet, Mask, id_hashes
from overnight.rows.rendering import Piece, key_problem
from overnight.rows.requests import Kind, Requests
from overnight.rows.tables import ROWS
from overnight.store.parquet import TableWriter, write_parquet


class Build(msgspec.Struct, frozen=True):
    """What a build made.

    A struct, which Prefect does not look into: it would draw an arrow from the build to every task run that takes one
    of the strings in it.
    """

    rows: int
    unsendable: int
    """Rows without a request: a null where text is needed, or too large."""
    requests: int
    """Distinct requests of the dataset."""
    known: int
    """Of those: answered before, or on their way."""
    fingerprint: str
    """Of the dataset that was read."""
    shards: tuple[NewShard, ...]
    """What is still to be sent, staged."""
    token: str = ""
    """Which map of rows it made."""
    superseded: tuple[int, ...] = ()
    """Ids of planned shards of an earlier definition that were never sent: they give way."""


class Builder:
    """Streams rows into the staging folder."""

    def __init__(
        self, job: Job, staging: Path, known: IdSet, sent: IdSet, round_: int, canary_rows: int | None,
        trial: Limit | None = None,
    ) -> None:  # fmt: skip
        self._job, self._staging, self._round, self._sent = job, staging, round_, sent
        self._known, self._seen, self._keys = known, IdSet(), IdSet()
        self._numbers, self._canary_rows, self._trial = count(), canary_rows, trial
        self._writers: dict[Kind, ShardWriter] = {}
        self._problems: list[Problem] = []
        self._rows = self._unsendable = self._requests = self._skipped = 0

    def build(self, pieces: Iterable[Piece], fingerprint: str, notes: Callable[[], dict[str, bytes]] = dict) -> Build:
        """Takes all rows once.

        Args:
            pieces: the rows with their requests.
            fingerprint: of the dataset.
            notes: called once they are read: what the map of rows keeps beside them.

        Raises:
            DatasetError: a key is null or stands twice.
            InvalidRequests: raw requests break rules; all are listed.
        """
        try:
            return self._build(pieces, fingerprint, notes)
        finally:
            for writer in self._writers.values():
                writer.discard()

    def _build(self, pieces: Iterable[Piece], fingerprint: str, notes: Callable[[], dict[str, bytes]]) -> Build:
        token = uuid4().hex
        about = {"fingerprint": fingerprint, "build": token}
        with write_parquet(self._staging / "rows.parquet", ROWS.with_metadata(about)) as table:
            for piece in pieces:
                self._check_keys(piece)
                self._take(piece.requests, table)
                if len(self._problems) > MOST_PROBLEMS:
                    break
            table.note(notes())
        if self._problems:
            raise InvalidRequests(f"{self._job.dataset.name} cannot be sent as it is:", self._problems)
        shards = [shard for writer in self._writers.values() for shard in writer.finish()]
        return Build(self._rows, self._unsendable, self._requests, self._skipped, fingerprint,
                     tuple(sorted(shards, key=lambda shard: shard.number)), token)  # fmt: skip

    def _take(self, requests: Requests, table: TableWriter) -> None:
        self._problems += requests.problems
        ids, rows = requests.ids, len(requests.ids)
        sendable = np.ones(rows, dtype=np.bool_)
        sendable[list(requests.errors)] = False
        hashes = id_hashes(ids)
        new = np.zeros(rows, dtype=np.bool_)
        new[sendable] = self._seen.add(hashes[sendable])
        if self._job.is_request_file and not requests.problems:
            self._refuse(ids, sendable & ~new, "stands twice")
            changed = self._known.contains(hashes) & ~self._sent.contains(id_hashes(requests.lines))
            self._refuse(ids, changed, "was sent with another body before: give it another id, or the job another name")
        fresh = new & ~self._known.contains(hashes)
        self._requests += int(new.sum())
        self._skipped += int(new.sum() - fresh.sum())
        self._unsendable += len(requests.errors)
        self._send(requests, fresh)
        table.write(_row_map(self._rows, ids, requests.errors))
        self._rows += rows

    def _send(self, requests: Requests, fresh: Mask) -> None:
        if not (at := np.flatnonzero(fresh).tolist()):
            return  # and no writer begins: the first one takes the canary and the trial
        if len(requests.kinds) == 1:
            self._writer(requests.kinds[0]).write(
                [requests.lines[one] for one in at] if len(at) < len(fresh) else requests.lines
            )
        else:
            for one in at:
                self._writer(requests.kinds[one]).write([requests.lines[one]])

    def _writer(self, kind: Kind) -> ShardWriter:
        if kind not in self._writers:
            first, trial = (None, None) if self._writers else (self._canary_rows, self._trial)
            self._writers[kind] = ShardWriter(
                self._staging, self._round, self._numbers, self._job.profile, kind, first=first, trial=trial
            )
        return self._writers[kind]

    def _refuse(self, ids: list[str], at: Mask, why: str) -> None:
        for position in np.flatnonzero(at).tolist():
            where = f"{self._job.dataset.name}, request {self._rows + position + 1}"
            self._problems.append(Problem(where, f"custom_id {ids[position]!r} {why}"))

    def _check_keys(self, piece: Piece) -> None:
        new = self._keys.add(id_hashes(piece.keys))
        new[piece.null_keys] = False
        if not new.all():
            bad = np.flatnonzero(~new).tolist()
            raise DatasetError(
                f"dataset.key ({', '.join(self._job.dataset.key)}) has to name each row once:",
                [Problem(f"row {self._rows + at + 1}", key_problem(piece, at)) for at in bad],
            )


def _row_map(first: int, ids: list[str], errors: dict[int, tuple[str, str]]) -> pa.RecordBatch:
    codes = [errors[at][0] if at in errors else None for at in range(len(ids))] if errors else None
    messages = [errors[at][1] if at in errors else None for at in range(len(ids))] if errors else None
    sent = [None if at in errors else one for at, one in enumerate(ids)] if errors else ids
    columns = [
        pa.array(np.arange(first, first + len(ids), dtype=np.int64)),
        pa.array(sent, pa.string()),
        pa.nulls(len(ids), pa.string()) if codes is None else pa.array(codes, pa.string()),
        pa.nulls(len(ids), pa.string()) if messages is None else pa.array(messages, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROWS)
