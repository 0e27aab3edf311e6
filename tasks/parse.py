"""parse: every request of a batch gets one verdict, in a Parquet part; what may be asked again is planned again."""

from __future__ import annotations

import logging
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers import VERDICTS, Answer, Reply, Verdict, failure_verdict
from overnight.errors import Unreconciled
from overnight.files import sync_folder
from overnight.ledger import Batch, NewShard, Shard
from overnight.parquet import TableWriter, write_parquet
from overnight.prompt import answer_of
from overnight.results import result_schema
from overnight.run import Run
from overnight.shards import Kind, ShardWriter
from overnight.tokens import frame_bytes
from overnight.wire import ResultLine, custom_ids, read_result
from tasks.fetch import Fetched

_FLUSH_ROWS = 2048
_RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
logger = logging.getLogger("overnight.parse")


@dataclass(frozen=True)
class Parsed:
    """What a batch came to."""

    verdicts: dict[str, Verdict]
    """Of every request that did not succeed."""
    counts: dict[str, int]
    """Requests by verdict: they sum to the shard's."""
    unreadable: int
    """Lines that are no result."""
    duplicates: int
    """Lines for a request that had one already."""
    foreign: int
    """Lines for requests that the shard does not have."""


class PartWriter:
    """Writes replies as rows of a result part."""

    def __init__(self, table: TableWriter, schema: pa.Schema, batch_id: str | None) -> None:
        self._table, self._schema, self._batch_id = table, schema, batch_id
        self._blank = (None,) * (len(schema) - 12)
        self._rows: list[tuple[Any, ...]] = []

    def add(self, custom_id: str, reply: Reply, raw: bytes | None) -> None:
        """Takes one reply."""
        self._rows.append(
            (
                custom_id,
                reply.verdict,
                reply.answer,
                *(reply.fields or self._blank),
                *reply[3:],
                self._batch_id,
                raw.decode(errors="replace") if raw is not None else None,
            )
        )
        if len(self._rows) >= _FLUSH_ROWS:
            self.flush()

    def flush(self) -> None:
        """Writes the rows taken so far."""
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, self._schema, strict=True)]
            self._table.write(pa.RecordBatch.from_arrays(arrays, schema=self._schema))
            self._rows.clear()


class Reconciler:
    """Sorts the lines of a batch's files to the requests of its shard."""

    def __init__(self, ids: Iterable[str], read: Callable[[ResultLine], Reply], part: PartWriter) -> None:
        self._open = set(ids)
        self._size = len(self._open)
        self._done: set[str] = set()
        self._read, self._part = read, part
        self._held: dict[str, tuple[Reply, bytes]] = {}
        self._unreadable = self._duplicates = self._foreign = 0

    def take(self, lines: Iterable[bytes]) -> None:
        """Reads a file. Successes are written at once; others are held, since a later line may be better."""
        for line in lines:
            if line.isspace():
                continue
            try:
                result = read_result(line)
            except ValueError:
                self._unreadable += 1
                continue
            self._sort(result, line)

    def _sort(self, result: ResultLine, line: bytes) -> None:
        custom_id = result.custom_id
        if custom_id not in self._open:
            if custom_id in self._done:
                self._duplicates += 1
            else:
                self._foreign += 1
            return
        reply = self._read(result)
        if custom_id in self._held:
            self._duplicates += 1
        if reply.verdict == "succeeded":
            self._held.pop(custom_id, None)
            self._open.remove(custom_id)
            self._done.add(custom_id)
            self._part.add(custom_id, reply, result.body)
        elif custom_id not in self._held or _RANK[reply.verdict] < _RANK[self._held[custom_id][0].verdict]:
            self._held[custom_id] = (reply, result.body or line.rstrip(b"\n"))

    def finish(self, absent: Callable[[str], Reply]) -> Parsed:
        """Writes the verdicts of all other requests; `absent` judges those without a line.

        Raises:
            Unreconciled: the verdicts do not add up to the shard's requests.
        """
        counts: Counter[str] = Counter({"succeeded": len(self._done)})
        verdicts: dict[str, Verdict] = {}
        for custom_id in sorted(self._open):
            reply, raw = self._held.get(custom_id) or (absent(custom_id), None)
            self._part.add(custom_id, reply, raw)
            counts[reply.verdict] += 1
            verdicts[custom_id] = reply.verdict
        self._part.flush()
        if sum(counts.values()) != self._size:
            raise Unreconciled(f"{self._size} requests were sent, {sum(counts.values())} have a verdict")
        kept: dict[str, int] = {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}
        return Parsed(verdicts, kept, self._unreadable, self._duplicates, self._foreign)


def absent_reply(batch: Batch, ids: list[str]) -> Callable[[str], Reply]:
    """Judges requests without a result line by how their batch ended.

    Args:
        batch: how it ended.
        ids: the shard's custom_ids in the order of its lines, which errors of validation name by number.
    """
    if batch.status in ("expired", "cancelled"):
        code = f"batch_{batch.status}"
        return lambda _id: Reply("expired", error_code=code, error_message=f"the batch ended {batch.status}")
    if batch.status != "failed":
        return lambda _id: Reply(
            "missing", error_code="missing", error_message="the files have no line for the request"
        )
    errors = batch.errors or []
    named = {ids[line - 1]: (code, message) for code, message, line in errors if line and line <= len(ids)}
    first = next(((code, message) for code, message, _ in errors), ("batch_failed", "the batch failed"))

    def judge(custom_id: str) -> Reply:
        if custom_id in named:
            return Reply("failed", error_code=named[custom_id][0], error_message=named[custom_id][1])
        verdict: Verdict = "retryable" if named else failure_verdict(None, first[0])
        return Reply(verdict, error_code=first[0], error_message=first[1])

    return judge


def parse(fetched: Fetched, request_file: Path, part: Path, answer: Answer) -> Parsed:
    """Reads a batch's files into a result part, with one row for every request of its shard."""
    schema = result_schema(answer)
    ids = list(custom_ids(request_file))
    with write_parquet(part, schema) as table:
        reconciler = Reconciler(ids, answer.reader(), PartWriter(table, schema, fetched.batch.batch_id))
        for path in (fetched.output, fetched.error):
            if path is not None:
                with path.open("rb") as lines:
                    reconciler.take(lines)
        return reconciler.finish(absent_reply(fetched.batch, ids))


def to_send_again(parsed: Parsed, shard: Shard, batch: Batch, max_attempts: int) -> dict[int, set[str]]:
    """Which requests go out again, by the number of the attempt that this will be.

    A request that could not be answered in time uses up no attempt, unless its batch answered none at all. What a
    person cancelled stays cancelled.
    """
    again: dict[int, set[str]] = {}
    stalled = not parsed.counts.get("succeeded")
    for custom_id, verdict in parsed.verdicts.items():
        if verdict == "expired" and batch.status == "cancelled" and not batch.cancelled_by_us:
            continue
        if verdict not in ("retryable", "missing", "expired"):
            continue
        attempt = shard.attempt if verdict == "expired" and not stalled else shard.attempt + 1
        if attempt <= max_attempts:
            again.setdefault(attempt, set()).add(custom_id)
    return again


def write_again(run: Run, shard: Shard, again: dict[int, set[str]]) -> list[NewShard]:
    """Copies the lines of requests that go out again into files of a new round."""
    if not again:
        return []
    folder = run.folder
    staging = folder.path / ".again"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    kind = Kind(shard.model, shard.url, frame_bytes(shard.requests, shard.bytes, shard.tokens))
    numbers, round_ = count(), run.ledger.next_round(shard.job)
    planned: list[NewShard] = []
    for attempt, ids in sorted(again.items()):
        writer = ShardWriter(staging, round_, numbers, run.job.profile, kind, attempt)
        for line in _lines_of(folder.requests / shard.file_name, ids):
            writer.write([line])
        planned += writer.finish()
    for new in planned:
        (staging / new.file_name).replace(folder.requests / new.file_name)
    sync_folder(folder.requests)
    staging.rmdir()
    return planned


def _lines_of(path: Path, ids: set[str]) -> Iterator[bytes]:
    with path.open("rb") as lines:
        yield from (line for line, custom_id in zip(lines, custom_ids(path), strict=True) if custom_id in ids)


@task(name="parse", task_run_name="parse {fetched.batch.batch_id}", cache_policy=NO_CACHE)
def parse_answers(run: Run, fetched: Fetched) -> dict[str, int]:
    """Settles an ended batch; returns its requests by verdict."""
    shard = run.ledger.shard(fetched.batch.shard_id)
    part = run.folder.results / f"{shard.round:04d}-{shard.number:04d}-{fetched.batch.id:06d}.parquet"
    parsed = parse(fetched, run.folder.requests / shard.file_name, part, answer_of(run.job))
    if parsed.unreadable or parsed.duplicates or parsed.foreign:
        logger.warning("batch %s: %d unreadable lines, %d duplicates, %d of unknown requests",
                       fetched.batch.batch_id, parsed.unreadable, parsed.duplicates, parsed.foreign)  # fmt: skip
    again = to_send_again(parsed, shard, fetched.batch, run.job.limits.max_attempts)
    planned = write_again(run, shard, again)
    run.ledger.settle(fetched.batch, time.time(), parsed.counts, planned, shard.job)
    logger.info("batch %s: %s%s", fetched.batch.batch_id, ", ".join(f"{n} {v}" for v, n in parsed.counts.items()),
                f"; {sum(map(len, again.values()))} go out again" if again else "")  # fmt: skip
    return parsed.counts
