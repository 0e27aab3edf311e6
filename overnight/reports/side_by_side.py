"""The answers of a job's variants side by side: one table over the rows that all of them answered, and its report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from overnight.errors import JobError
from overnight.ledger.run import Run
from overnight.reports.summary import Summary
from overnight.store.parquet import open_parquet, read_batches, write_parquet
from overnight.store.table import columns_of, one, opened, quoted
from overnight.text import code, dollars, inline, table

_KEPT = frozenset({"custom_id", "status", "answer", "embedding", "answers", "finish_reason", "error_code",
                   "error_message", "input_tokens", "output_tokens", "cost_usd"})  # fmt: skip
"""Of what is added to rows, what the table has of each variant; and all typed fields."""
_FIRST_ADDED = "custom_id"
_CHANGED = "the dataset changed between the variants of the job: run it again"


def write_side_by_side(run: Run, runs: Mapping[str, Run]) -> Counter[str]:
    """Writes the joined tables of variants as one, row by row; returns rows by status.

    Columns: the dataset's; `status` (`succeeded` where all variants answered, else what the first other one has) with
    its error; `agree`, whether all have the same answer; `cost_usd` of all; then each variant's, as `answer@label`.

    Args:
        run: the job.
        runs: its variants by label.

    Raises:
        JobError: they were not built from the same rows.
    """
    prefix = run.job.output.prefix
    paths = [one_.folder.joined for one_ in runs.values()]
    schemas = [_schema_of(run, label, one_) for label, one_ in runs.items()]
    dataset = schemas[0].names.index(prefix + _FIRST_ADDED)
    kept = [[name for name in schema.names[dataset:] if _is_kept(name.removeprefix(prefix))] for schema in schemas]
    sides = [
        schema.field(name).with_name(f"{name}@{label}")
        for label, schema, names in zip(runs, schemas, kept, strict=True)
        for name in names
    ]
    texts = [pa.field(f"{prefix}{name}", pa.string()) for name in ("status", "error_code", "error_message")]
    own = [*texts, pa.field(f"{prefix}agree", pa.bool_()), pa.field(f"{prefix}cost_usd", pa.float64())]
    schema = pa.schema([*list(schemas[0])[:dataset], *own, *sides], metadata=schemas[0].metadata)
    told = {record.fingerprint for one_ in runs.values() if (record := one_.ledger.job(one_.job.name)) is not None}
    if len(told) > 1:
        raise JobError(_CHANGED)
    statuses: Counter[str] = Counter()
    with write_parquet(run.folder.joined, schema) as joined, write_parquet(run.folder.failed, schema) as failed:
        for batches in _in_step([read_batches(path) for path in paths]):
            if "" in told and len({repr(batch.select(range(dataset)).to_pylist()) for batch in batches}) > 1:
                raise JobError(_CHANGED)  # of a query nobody knows but by its rows
            columns = [*batches[0].columns[:dataset], *_overall(batches, prefix)]
            columns += [batch[name] for batch, names in zip(batches, kept, strict=True) for name in names]
            rows = pa.RecordBatch.from_arrays(columns, schema=schema)
            status = rows[f"{prefix}status"]
            statuses.update({each["values"]: each["counts"] for each in pc.value_counts(status).to_pylist()})
            joined.write(rows)
            failed.write(rows.filter(pc.not_equal(status, "succeeded")))
    return statuses


def _schema_of(run: Run, label: str, variant: Run) -> pa.Schema:
    with open_parquet(variant.folder.joined) as file:
        rows, schema = file.metadata.num_rows, file.schema_arrow
    record = variant.ledger.job(variant.job.name)
    if record is None or rows != record.rows:
        raise JobError(f"{variant.folder.joined} is not as {label} of {run.job.name} was built: run it again")
    return schema


def _is_kept(name: str) -> bool:
    return name in _KEPT or name.startswith("answer_")


def _in_step(tables: Sequence[Iterator[pa.RecordBatch]]) -> Iterator[list[pa.RecordBatch]]:
    """The same rows of several tables at a time."""
    pending: list[pa.RecordBatch] = [None] * len(tables)
    while True:
        for at, batches in enumerate(tables):
            if pending[at] is None or not pending[at].num_rows:
                pending[at] = next(batches, None)
        if any(batch is None for batch in pending):
            if not all(batch is None for batch in pending):
                raise JobError(_CHANGED)
            return
        rows = min(batch.num_rows for batch in pending)
        yield [batch.slice(0, rows) for batch in pending]
        pending = [batch.slice(rows) for batch in pending]


def _overall(batches: Sequence[pa.RecordBatch], prefix: str) -> list[pa.Array]:
    """Status and error of the first variant without an answer, whether all agree, and the cost of all."""
    status, error, message = (batches[0][f"{prefix}{name}"] for name in ("status", "error_code", "error_message"))
    for batch in batches[1:]:
        answered = pc.equal(status, "succeeded")
        error = pc.if_else(answered, batch[f"{prefix}error_code"], error)
        message = pc.if_else(answered, batch[f"{prefix}error_message"], message)
        status = pc.if_else(answered, batch[f"{prefix}status"], status)
    agree = pa.nulls(len(status), pa.bool_())
    if all(f"{prefix}answer" in batch.schema.names for batch in batches):
        answers = [pc.cast(batch[f"{prefix}answer"], pa.string()) for batch in batches]
        agree = pa.array([True] * len(status))
        for other in answers[1:]:
            agree = pc.and_kleene(agree, pc.equal(answers[0], other))
    cost = batches[0][f"{prefix}cost_usd"]
    for batch in batches[1:]:
        cost = pc.add(cost, batch[f"{prefix}cost_usd"])
    return [status, error, message, agree, cost]


def side_by_side_report(run: Run, summaries: Mapping[str, Summary]) -> str:
    """The report: what each variant answered, cost and how it agrees with what was expected and with the others."""
    prefix, expected = run.job.output.prefix, run.job.report.compare
    with opened(run.folder.joined) as database:
        there = columns_of(database)
        compared = expected is not None and expected in there
        head = ["variant", "rows answered", "input tokens", "output tokens", "cost", *(["agrees"] if compared else [])]
        rows = []
        for label, summary in summaries.items():
            cells = [inline(label), f"{summary.succeeded:,} of {summary.rows:,}", f"{summary.input_tokens:,}",
                     f"{summary.output_tokens:,}", dollars(summary.cost_usd)]  # fmt: skip
            answer = f"{prefix}answer@{label}"
            if compared and expected is not None and answer in there:
                cells.append(_share(database, expected, answer))
            rows.append(cells)
        pairs = [
            [inline(left), inline(right), _share(database, f"{prefix}answer@{left}", f"{prefix}answer@{right}")]
            for left, right in combinations(summaries, 2)
            if f"{prefix}answer@{left}" in there and f"{prefix}answer@{right}" in there
        ]
    names = ", ".join(code(summary.job) for summary in summaries.values())
    told = (
        f"{len(summaries)} variants over the same rows. `overnight show {run.job.name}` prints their answers side by "
        f"side; each has its own job and report: {names}."
    )
    parts = [f"# {run.job.name}", told, table(head, rows)]
    if pairs:
        parts += ["## Agreement between them", table(["", "", "rows with the same answer"], pairs)]
    return "\n\n".join(parts) + "\n"


def _share(database: Any, left: str, right: str) -> str:
    """How many of the rows that have both values have the same."""
    both, same = one(
        database,
        f"select count(*), count_if({quoted(left)}::varchar = {quoted(right)}::varchar) from joined "  # noqa: S608 - quoted names
        f"where {quoted(left)} is not null and {quoted(right)} is not null",
    )
    return f"{same:,} of {both:,} ({same / both:.1%})" if both else "–"
