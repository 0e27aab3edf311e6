"""parse: every request of a batch gets one verdict, in a Parquet part; what may be asked again is planned again."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.again import send_again, whole_file, write_again
from overnight.answers import Answer
from overnight.errors import LedgerError, OvernightError, Unreconciled
from overnight.parquet import TableWriter, write_parquet
from overnight.prompt import answer_of
from overnight.records import Batch
from overnight.replies import RemoteBatch, RemoteError
from overnight.results import missing_parts, part_name, result_schema, unmetered
from overnight.run import Run
from overnight.verdicts import VERDICTS, Reply, Verdict, failure_verdict
from overnight.wire import ResultLine, custom_ids, read_result
from tasks.fetch import Fetched, fetched_before
from tasks.span import span_name
from tasks.submit import refused_whole

USAGE = ("input_tokens", "output_tokens", "cached_tokens")
_FLUSH_ROWS = 2048
_RANK = {verdict: rank for rank, verdict in enumerate(VERDICTS)}
logger = logging.getLogger("overnight.parse")


@dataclass(frozen=True)
class Parsed:
    """What a batch came to."""

    others: dict[str, Reply]
    """Of every request that did not succeed."""
    counts: dict[str, int]
    """Requests by verdict: they sum to the shard's."""
    unreadable: int
    """Lines that are no result."""
    duplicates: int
    """Lines for a request that had one already."""
    foreign: int
    """Lines for requests that the shard does not have."""
    usage: dict[str, int]
    """Tokens of all answers."""
    service_tiers: dict[str, int]
    """Answers by the service tier that they name."""


class PartWriter:
    """Writes replies as rows of a result part."""

    def __init__(self, table: TableWriter, schema: pa.Schema, batch_id: str | None) -> None:
        self._table, self._schema, self._batch_id = table, schema, batch_id
        self._blank = (None,) * (len(schema) - 13)
        self._rows: list[tuple[Any, ...]] = []
        self.usage = Counter(dict.fromkeys([*USAGE, "unmetered"], 0))
        self.service_tiers: Counter[str] = Counter()

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
            batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
            self._table.write(batch)
            self._meter(batch)
            self._rows.clear()

    def _meter(self, batch: pa.RecordBatch) -> None:
        self.usage.update({name: pc.sum(batch[name]).as_py() or 0 for name in USAGE})
        self.usage["unmetered"] += pc.sum(unmetered(batch)).as_py() or 0
        for tier in pc.value_counts(batch["service_tier"].drop_null()).to_pylist():
            self.service_tiers[tier["values"]] += tier["counts"]


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
        others: dict[str, Reply] = {}
        for custom_id in sorted(self._open):
            reply, raw = self._held.get(custom_id) or (absent(custom_id), None)
            self._part.add(custom_id, reply, raw)
            counts[reply.verdict] += 1
            others[custom_id] = reply
        self._part.flush()
        if sum(counts.values()) != self._size:
            raise Unreconciled(f"{self._size} requests were sent, {sum(counts.values())} have a verdict")
        kept: dict[str, int] = {verdict: counts[verdict] for verdict in VERDICTS if counts[verdict]}
        return Parsed(others, kept, self._unreadable, self._duplicates, self._foreign,
                      dict(self._part.usage), dict(self._part.service_tiers))  # fmt: skip


def absent_reply(batch: Batch, ids: list[str]) -> Callable[[str], Reply]:
    """Judges requests without a result line by how their batch ended.

    Args:
        batch: how it ended.
        ids: the shard's custom_ids in the order of its lines, which errors of validation name by number.
    """
    if batch.status in ("expired", "cancelled"):
        code = f"batch_{batch.status}"
        return lambda _id: Reply("expired", error_code=code, error_message=f"the batch ended {batch.status}")
    if batch.status == "lost":
        message = "the provider lost the batch: it knows it no more, its files are gone, or it never ended"
        return lambda _id: Reply("missing", error_code="batch_lost", error_message=message)
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


def failed_batch(batch: Batch) -> RemoteBatch:
    """What the ledger kept of how a batch ended, as the provider said it."""
    errors = tuple(RemoteError(*error) for error in batch.errors or ())
    return RemoteBatch(batch.batch_id or "", batch.status or "", errors=errors)


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


def restore_parts(run: Run) -> None:
    """Makes result parts anew that are gone, from what the provider sent back.

    Raises:
        LedgerError: that is gone too, or comes to other verdicts than it did.
    """
    folder = run.folder
    for shard, batch in missing_parts(folder.results, run.ledger.shards(run.job.name)):
        fetched, part = fetched_before(folder.responses, batch), folder.results / part_name(shard, batch)
        parsed = parse(fetched, whole_file(folder, shard, run.job.profile), part, answer_of(run.job))
        if parsed.counts != batch.verdicts:
            part.unlink()
            raise LedgerError(
                f"{part} is missing, and {folder.responses} gives other verdicts ({parsed.counts}) than were collected "
                f"({batch.verdicts}): restore both from a backup"
            )
        logger.warning("%s was missing: made anew from responses/", part.name)


def parse_one(run: Run, fetched: Fetched) -> dict[str, int]:
    """Settles an ended batch; returns its requests by verdict."""
    batch, limits = fetched.batch, run.job.limits
    shard = run.ledger.shard(batch.shard_id)
    if not fetched.lines and refused_whole(run, batch, failed_batch(batch)):
        return {}
    part = run.folder.results / part_name(shard, batch)
    parsed = parse(fetched, whole_file(run.folder, shard, run.job.profile), part, answer_of(run.job))
    if parsed.unreadable or parsed.duplicates or parsed.foreign:
        logger.warning("batch %s: %d unreadable lines, %d duplicates, %d of unknown requests",
                       batch.batch_id, parsed.unreadable, parsed.duplicates, parsed.foreign)  # fmt: skip
    record = run.ledger.job(shard.job)
    again = send_again(parsed.others, "succeeded" in parsed.counts, shard, batch, limits)
    if record is not None and record.stopped:
        again = {}
    planned = write_again(run.folder, shard, again, run.job.profile, run.ledger.next_round(shard.job))
    outcome = {"verdicts": parsed.counts, "usage": parsed.usage, "service_tiers": parsed.service_tiers}
    run.ledger.settle(batch, time.time(), outcome, planned, shard.job)
    logger.info("batch %s: %s%s", batch.batch_id, ", ".join(f"{n} {v}" for v, n in parsed.counts.items()),
                f"; {sum(new.requests for new in planned)} go out again" if planned else "")  # fmt: skip
    return parsed.counts


@task(name="parse", task_run_name=span_name("parse", "fetched"), cache_policy=NO_CACHE)
def parse_answers(run: Run, fetched: tuple[Fetched, ...]) -> None:
    """Settles ended batches; one that cannot be settled keeps no other from it.

    Raises:
        OvernightError: what went wrong with the first that could not be settled.
    """
    failure: OvernightError | None = None
    for one in fetched:
        try:
            parse_one(run, one)
        except OvernightError as error:
            logger.error("batch %s cannot be settled: %s", one.batch.batch_id, error)  # noqa: TRY400 - it says why
            failure = failure or error
    if failure:
        raise failure
