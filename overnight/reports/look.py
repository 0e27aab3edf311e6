"""A look at a joined table: rows that a person asks for, how answers are distributed, where jobs differ; and exports.

DuckDB reads the Parquet file as it lies there. Conditions are DuckDB's SQL over the joined table's columns.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from overnight.errors import JobError
from overnight.ledger.run import Run
from overnight.rows.samples import input_columns
from overnight.store.files import atomic_path
from overnight.store.objects import is_there
from overnight.store.table import FILE, NUMBER, columns_of, numbered, one, opened, quoted, text
from overnight.text import counted_of, did_you_mean

Format = Literal["csv", "jsonl", "parquet", "duckdb"]
_ENDINGS: dict[str, Format] = {
    ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".pq": "parquet", ".duckdb": "duckdb",
    ".db": "duckdb",
}  # fmt: skip
_MOST_LABELS = 12


class Look(NamedTuple):
    """Some rows of a joined table."""

    columns: list[str]
    rows: list[tuple[Any, ...]]
    found: int
    """How many rows the question has, of which `rows` are the first."""
    total: int
    """Rows of the table."""


class Share(NamedTuple):
    """A value and how many rows have it."""

    value: str
    rows: int


class Overview(NamedTuple):
    """What a joined table holds."""

    statuses: list[Share]
    answers: list[Share]
    """The commonest answers, where they repeat; empty where nearly every answer is its own."""
    errors: list[tuple[str, int, str]]
    """Error code, rows, and the message of one; the commonest first."""


class Failure(NamedTuple):
    """Rows without an answer, for one reason."""

    status: str
    code: str
    rows: int
    first: int
    """The number of the first of them, from 0."""
    key: str
    """Its key, as `id=7`; empty where the dataset has none."""
    message: str


def failures(run: Run, *, unsent: bool = False, limit: int = 30) -> list[Failure]:
    """Why rows of a joined table have no answer, the commonest reason first.

    Args:
        run: the job.
        unsent: only rows that were never sent.
        limit: how many reasons.
    """
    prefix = run.job.output.prefix
    status, code, message, custom_id = (
        quoted(prefix + name) for name in ("status", "error_code", "error_message", "custom_id")
    )
    parts = [f"concat({text(name + '=')}, {quoted(name)}::varchar)" for name in run.job.dataset.key]
    key = f"concat_ws(', ', {', '.join(parts)})" if parts else "''"
    only = f"and {custom_id} is null" if unsent else ""
    with opened(run.folder.joined) as database:
        found = database.execute(f"""
            select {status}, coalesce({code}, 'unknown'), count(*), min({NUMBER}), arg_min({key}, {NUMBER}),
                   coalesce(arg_min({message}, {NUMBER}), '')
            from joined where {status} <> 'succeeded' {only} group by 1, 2 order by 3 desc, 1, 2 limit {int(limit)}
        """).fetchall()  # noqa: S608 - quoted names
    return [Failure(*row) for row in found]


def joined_table(run: Run) -> Path:
    """The joined table of a job.

    Raises:
        JobError: the job has none yet.
    """
    if not is_there(run.folder.joined):
        name = run.job.name
        raise JobError(f"the job {name!r} has no joined table yet: `overnight status` tells what it waits for")
    return run.folder.joined


def usual_columns(run: Run) -> list[str]:
    """The columns that tell what was asked and what came: key, columns of the prompt, status, answer, error."""
    with opened(run.folder.joined) as database:
        there = columns_of(database)
    added = [run.job.output.prefix + name for name in ("status", "answer", "error_code")]
    asked = input_columns(run.job, run.rows().schema)
    compared = [run.job.report.compare] if run.job.report.compare else []
    typed = [name for name in there if name.startswith(run.job.output.prefix + "answer_") and "reasoning" not in name]
    variants = [name for name in there if name.startswith(f"{run.job.output.prefix}answer@")]
    wanted = [*asked, *compared, *added[:2], *variants, *typed[:4], added[2]]
    return [name for name in dict.fromkeys(wanted) if name in there]


def look(table: Path, columns: Sequence[str], *, where: str | None = None, limit: int = 20) -> Look:
    """The first rows of a joined table for which a condition holds.

    Args:
        table: `joined.parquet`.
        columns: to show, in their order; all of them where there is none.
        where: SQL over the columns.
        limit: how many rows.

    Raises:
        JobError: a column is not there, or the condition cannot be read.
    """
    with opened(table) as database:
        names = _checked(columns, list(columns_of(database)))
        condition = f"where {where}" if where else ""
        total, found = one(database, f"select count(*), (select count(*) from joined {condition}) from joined")  # noqa: S608 - the person's own
        shown = ", ".join(map(quoted, names))
        rows = database.execute(f"select {shown} from joined {condition} limit {int(limit)}").fetchall()  # noqa: S608 - the same
    return Look(names, rows, found, total)


def overview(table: Path, prefix: str = "") -> Overview:
    """How a table's statuses, answers and errors are distributed.

    Args:
        table: `joined.parquet`.
        prefix: of the added columns.
    """
    status, answer, code, message = (
        quoted(prefix + name) for name in ("status", "answer", "error_code", "error_message")
    )
    with opened(table) as database:
        run = database.execute
        statuses = run(f"select {status}, count(*) as n from joined group by 1 order by n desc, 1").fetchall()  # noqa: S608 - names of ours
        answers: list[tuple[str, int]] = []
        if prefix + "answer" in columns_of(database):
            counted = (
                f"select count({answer}), approx_count_distinct({answer}) from joined where {status} = 'succeeded'"  # noqa: S608 - the same
            )
            answered, distinct = one(database, counted)
            if distinct * 4 <= answered:
                answers = run(f"""
                    select {answer}, count(*) as n from joined where {status} = 'succeeded' and {answer} is not null
                    group by 1 order by n desc, 1 limit {_MOST_LABELS}
                """).fetchall()  # noqa: S608 - the same
        errors = run(f"""
            select coalesce({code}, {status}), count(*) as n, any_value({message}) from joined
            where {status} <> 'succeeded' group by 1 order by n desc, 1 limit 5
        """).fetchall()  # noqa: S608 - the same
    return Overview(
        [Share(*one) for one in statuses], [Share(*one) for one in answers],
        [(one, rows, why or "") for one, rows, why in errors],
    )  # fmt: skip


def differences(mine: Run, other: Run, *, limit: int = 20) -> Look:
    """The rows where two jobs over the same rows differ in status or answer.

    Rows are the same where the dataset's key is; without one, where they stand at the same place.

    Raises:
        JobError: one has no joined table or no answers, or they are not over the same rows.
    """
    key = list(mine.job.dataset.key)
    if key != list(other.job.dataset.key):
        raise JobError(f"{mine.job.name} and {other.job.name} have different keys: name the same dataset.key in both")
    columns = [[run.job.output.prefix + name for name in ("status", "answer")] for run in (mine, other)]
    with opened(joined_table(mine)) as database:
        asked = [name for name in usual_columns(mine) if name in input_columns(mine.job, mine.rows().schema)]
        database.execute(f"create view other as {numbered(joined_table(other))}")
        for name, wanted in zip(("joined", "other"), columns, strict=True):
            _checked(wanted, list(columns_of(database, name)))
        same = (
            " and ".join(f"a.{quoted(name)} = b.{quoted(name)}" for name in key)
            or "a.file_row_number = b.file_row_number"
        )
        (status, answer), (their_status, their_answer) = ([quoted(name) for name in names] for names in columns)
        pairs = f"from joined a join other b on {same}"
        wrong = f"where (a.{status}, a.{answer}) is distinct from (b.{their_status}, b.{their_answer})"
        total, found = one(database, f"select count(*), (select count(*) {pairs} {wrong}) {pairs}")
        if not total:
            raise JobError(f"{mine.job.name} and {other.job.name} have no row in common")
        said = f"coalesce(a.{answer}, a.{status}), coalesce(b.{their_answer}, b.{their_status})"
        shown = ", ".join([*(f"a.{quoted(name)}" for name in asked), said])
        rows = database.execute(
            f"select {shown} {pairs} {wrong} order by a.file_row_number limit {int(limit)}"
        ).fetchall()
    return Look([*asked, f"answer@{mine.job.name}", f"answer@{other.job.name}"], rows, found, total)


def format_of(target: Path, told: str | None = None) -> Format:
    """The format of a file: as it is told, else by its ending.

    Raises:
        JobError: neither tells.
    """
    form = told or _ENDINGS.get(target.suffix.lower())
    for known in _ENDINGS.values():
        if form == known:
            return known
    raise JobError(f"{target.name}: name the format with --to: csv, jsonl, parquet or duckdb")


def export(table: Path, target: Path, form: Format, *, where: str | None = None) -> int:
    """Writes a joined table in another format; returns the rows written.

    Args:
        table: `joined.parquet`.
        target: the file, which takes its place when it is whole.
        form: of the file.
        where: SQL over the columns, for some of the rows.

    Raises:
        JobError: the condition cannot be read.
    """
    condition = f"where {where}" if where else ""
    with opened(table) as database, atomic_path(target) as part:
        (rows,) = one(database, f"select count(*) from joined {condition}")  # noqa: S608 - the person's own
        chosen = f"select * exclude ({NUMBER}, {FILE}) from joined {condition} order by file_row_number"  # noqa: S608 - the same
        match form:
            case "parquet" if not where:  # as it is, with pandas' index and types
                shutil.copyfile(table, part)
            case "duckdb":
                part.unlink()
                database.execute(f"attach {text(part)} as target")
                database.execute(f"create table target.answers as {chosen}")
                database.execute("detach target")
            case _:
                options = {"csv": "format csv, header", "jsonl": "format json", "parquet": "format parquet"}[form]
                database.execute(f"copy ({chosen}) to {text(part)} ({options})")
    return int(rows)


def _checked(wanted: Sequence[str], there: Sequence[str]) -> list[str]:
    for name in wanted:
        if name not in there:
            raise JobError(f"the joined table has no column {name!r}{did_you_mean(name, there)}; "
                           f"it has {counted_of(len(there), 'column')}: {', '.join(there)}")  # fmt: skip
    return list(wanted) or list(there)
