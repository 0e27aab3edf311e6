"""join: the joined table, one row per row of the dataset in its order, and the rows without an answer."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.results import result_parts, result_schema, unmetered
from overnight.answers.row_order import RowOrder, row_order
from overnight.answers.trouble import troubled
from overnight.answers.verdicts import PROMPT_FILTERED
from overnight.errors import LedgerError, Unreconciled
from overnight.job.answer import Answer
from overnight.job.job import Job
from overnight.job.prompt import answer_of
from overnight.ledger.built_rows import BuiltRows, RowMap, built_map
from overnight.ledger.records import Shard
from overnight.ledger.request_files import request_file
from overnight.ledger.run import Run
from overnight.limits.prices import Rates, job_rates
from overnight.reports.summary import Tally
from overnight.rows.ids import IdSet, id_hashes
from overnight.rows.lines import custom_ids
from overnight.rows.samples import Reservoir, input_columns, samples_text
from overnight.rows.tables import joined_schema
from overnight.store.parquet import read_batches, write_parquet


class Awaited(NamedTuple):
    """Requests whose batch is in trouble: their answers may come yet."""

    ids: IdSet
    why: str

    def among(self, ids: pa.Array) -> pa.Array:
        """Which of some custom_ids are awaited; none where a row has no request."""
        if not len(self.ids):
            return pa.repeat(False, len(ids))
        found = self.ids.contains(id_hashes([name or "" for name in ids.to_pylist()]))
        return pc.and_(pa.array(found), ids.is_valid())


def awaited_requests(run: Run, shards: Sequence[Shard]) -> Awaited:
    """The requests of the batches that cannot be collected for now."""
    ids, reasons = IdSet(), dict[str, None]()
    for shard, batch in troubled(shards):
        ids.add_all(custom_ids(request_file(run.folder, shard, run.job.profile)))
        reasons[f"batch {batch.batch_id}: {batch.trouble}"] = None
    return Awaited(ids, f"its answer may come yet: {'; '.join(list(reasons)[:3])}" if reasons else "")


class Joiner:
    """Puts results beside rows, a batch of rows at a time."""

    def __init__(
        self,
        results: RowOrder,
        answer: Answer,
        rates: Rates | None,
        stopped: str | None,
        awaited: Awaited,
    ) -> None:
        self._results, self._answer, self._rates = results, answer, rates
        self._unsent = f"it was not sent: {stopped or 'the job was joined before'}"
        self._awaited = awaited
        self.tally = Tally(cost_usd=0.0)

    def columns(self, row_map: pa.RecordBatch) -> list[pa.Array]:
        """The added columns for a batch of rows, in the order of `added_fields`."""
        results = self._results.take(row_map["row"][0].as_py(), row_map.num_rows)
        first = pc.fill_null(results["first"], False).combine_chunks()
        added = self._assemble(row_map, results, first, self._awaited.among(row_map["custom_id"]))
        self._count(added, first)
        return list(added.values())

    def _assemble(
        self, row_map: pa.RecordBatch, results: pa.Table, first: pa.Array, waits: pa.Array
    ) -> dict[str, pa.Array]:
        column = {name: results[name].combine_chunks() for name in results.schema.names}
        # A request whose retry is in trouble is awaited, whatever its attempt before came to.
        again = pc.is_in(column["verdict"], value_set=pa.array(["retryable", "expired", "missing"]))
        later = pc.and_(waits, pc.fill_null(again, False))
        verdict = pc.if_else(later, None, column["verdict"])
        answered = pc.if_else(pc.equal(verdict, "retryable"), "failed", verdict)
        status = pc.coalesce(answered, pc.if_else(pc.is_valid(row_map["error_code"]), "failed", "missing"))
        absent = pc.and_(pc.is_null(verdict), pc.is_null(row_map["error_code"]))
        code = pc.if_else(absent, pc.if_else(waits, "awaited", "not_sent"), None)
        why = pc.if_else(absent, pc.if_else(waits, self._awaited.why, self._unsent), None)
        answers = {"embedding" if self._answer.kind == "embedding" else "answer": column["answer"]}
        answers |= {f"answer_{one.name}": column[f"answer_{one.name}"] for one in self._answer.columns}
        answers |= {extra.field.name: column[extra.field.name] for extra in self._answer.extras}
        return {
            "custom_id": row_map["custom_id"],
            "status": status,
            **answers,
            "finish_reason": column["finish_reason"],
            "error_code": pc.coalesce(pc.if_else(later, None, column["error_code"]), row_map["error_code"], code),
            "error_message": pc.coalesce(
                pc.if_else(later, None, column["error_message"]), row_map["error_message"], why
            ),
            "model": column["model"],
            "input_tokens": column["input_tokens"],
            "output_tokens": column["output_tokens"],
            "cached_tokens": column["cached_tokens"],
            "reasoning_tokens": column["reasoning_tokens"],
            "cost_usd": self._cost(column, first),
            "batch_id": column["batch_id"],
            "attempts": pc.fill_null(column["attempts"], 0),
        }

    def _cost(self, column: dict[str, pa.Array], first: pa.Array) -> pa.Array:
        """USD by row; rows that share a request after its first cost nothing, so that the column sums to the bill.

        Each answer has the price that stood when it was asked for; those of older versions get today's.
        """
        priced = column["cost_usd"]
        if self._rates is not None and priced.null_count:
            given, made, cached = (
                pc.fill_null(column[name], 0).to_numpy(zero_copy_only=False).astype(np.float64)
                for name in ("input_tokens", "output_tokens", "cached_tokens")
            )
            priced = pc.coalesce(priced, pa.array(self._rates.costs(given, made, cached)))
            rows = pa.RecordBatch.from_arrays(list(column.values()), names=list(column))
            untold = pc.and_(unmetered(rows), not self._rates.free)
            priced = pc.if_else(pc.or_(pc.is_null(column["verdict"]), untold), None, priced)
        return pc.if_else(pc.and_(pc.is_valid(priced), pc.invert(first)), 0.0, priced)

    def _count(self, added: dict[str, pa.Array], first: pa.Array) -> None:
        tally = self.tally
        tally.rows += len(first)
        for status, rows in _value_counts(added["status"]):
            tally.statuses[status] += rows
        failed = pc.not_equal(added["status"], "succeeded")
        wrong = (added[name].filter(failed).to_pylist() for name in ("status", "error_code"))
        tally.errors.update((status, code or "unknown") for status, code in zip(*wrong, strict=True))
        tally.input_tokens += pc.sum(added["input_tokens"].filter(first)).as_py() or 0
        tally.output_tokens += pc.sum(added["output_tokens"].filter(first)).as_py() or 0
        tally.cached_tokens += pc.sum(added["cached_tokens"].filter(first)).as_py() or 0
        answered = pc.is_in(added["status"], value_set=pa.array(["succeeded", "invalid", "refused"]))
        answered = pc.and_not(answered, pc.is_in(added["error_code"], value_set=pa.array(sorted(PROMPT_FILTERED))))
        if tally.cost_usd is not None and pc.any(pc.and_(answered, pc.is_null(added["cost_usd"]))).as_py():
            tally.cost_usd = None
        if tally.cost_usd is not None:
            tally.cost_usd += pc.sum(added["cost_usd"]).as_py() or 0.0


def _value_counts(column: pa.Array) -> list[tuple[Any, int]]:
    return [(one["values"], one["counts"]) for one in pc.value_counts(column).to_pylist()]


class Sampler:
    """Picks rows for the page: some with their answers, some without."""

    def __init__(self, job: Job, answer: Answer, dataset: pa.Schema) -> None:
        names = [job.output.prefix + name for name in ("status", "answer", "error_code", "error_message")]
        size = 0 if answer.kind == "embedding" else job.report.samples
        self._status, asked = names[0], input_columns(job, dataset)
        self._answered = Reservoir(size, [*asked, names[1]] if size else [])
        self._failed = Reservoir(job.report.samples, [*asked, names[0], *names[2:]])

    def take(self, rows: pa.RecordBatch) -> None:
        """Looks at the next rows of the joined table."""
        succeeded = pc.equal(rows[self._status], "succeeded")
        self._answered.take(rows.filter(succeeded))
        self._failed.take(rows.filter(pc.invert(succeeded)))

    def text(self, job: str) -> str | None:
        """The samples in Markdown; None where there are none."""
        answered, failed = self._answered.rows, self._failed.rows
        return samples_text(job, answered, failed) if answered or failed else None


def join(run: Run) -> Tally:
    """Writes `joined.parquet` and `failed.parquet`; returns what they add up to.

    Raises:
        DatasetError: the rows that were built changed since.
        LedgerError: the job was not built here.
        Unreconciled: the table would not have one row per row of the dataset.
    """
    answer, job = answer_of(run.job), run.job
    if (record := run.ledger.job(job.name)) is None:
        raise LedgerError(f"the job {job.name!r} was not built here: run it first")
    mapped_rows = built_map(run, record)
    row_map = RowMap(read_batches(mapped_rows))
    built = BuiltRows(run, record)
    rows = built.rows
    shards = run.ledger.shards(job.name)
    parts, awaited = result_parts(run.folder.results, shards), awaited_requests(run, shards)
    wanted = pa.schema([field for field in result_schema(answer) if field.name != "raw"])
    schema = joined_schema(rows.kept, answer, job.output.prefix)
    sampler = Sampler(job, answer, rows.schema)
    with ExitStack() as files:
        results = files.enter_context(row_order(run.folder.spill, wanted, mapped_rows, record.rows, parts))
        joiner = Joiner(results, answer, job_rates(job), record.stopped, awaited)
        joined = files.enter_context(write_parquet(run.folder.joined, schema))
        failed = files.enter_context(write_parquet(run.folder.failed, schema))
        for batch, mapped in built.batches(row_map):
            added = joiner.columns(mapped)
            whole = pa.RecordBatch.from_arrays([*rows.keep(batch), *added], schema=schema)
            joined.write(whole)
            sampler.take(whole)
            status = whole[job.output.prefix + "status"]
            failed.write(whole.filter(pc.not_equal(status, "succeeded")))
        if joiner.tally.rows != record.rows:
            raise Unreconciled(f"{joiner.tally.rows:,} rows were joined; the build had {record.rows:,}")
    joiner.tally.requests, joiner.tally.new_rows = record.requests, built.new_rows
    joiner.tally.samples = sampler.text(job.name)
    return joiner.tally


@task(name="join", task_run_name="join", cache_policy=NO_CACHE)
def join_answers(run: Run) -> Tally:
    """Joins all answers there are to the dataset."""
    return join(run)
