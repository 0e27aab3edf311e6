"""A page of a joined table: the rows that a person asks for, as text that fits a cell."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from overnight.errors import JobError
from overnight.store.table import columns_of, one, opened, quoted

MOST_ROWS = 500
"""Of one page."""
_CELL = 300
"""Characters of a cell in the table; a row that is opened has them all."""
Operator = Literal["=", "contains", ">", "<"]


class Filter(msgspec.Struct, frozen=True):
    """A condition on a column."""

    column: str
    operator: Operator
    value: str


class Ask(msgspec.Struct, frozen=True):
    """Which rows."""

    offset: int = 0
    limit: int = 100
    sort: str | None = None
    descending: bool = False
    search: str = ""
    """A text that any column holds, whatever its case."""
    filters: tuple[Filter, ...] = ()


class Page(NamedTuple):
    """Some rows; `row` is the number of each, from 0."""

    rows: list[dict[str, Any]]
    found: int
    total: int


def column_kinds(table: Path) -> dict[str, str]:
    """The columns of a table and what they hold: `number`, `text`, or `other`."""
    with opened(table) as database:
        return {name: _kind(kind) for name, kind in columns_of(database).items()}


def _kind(kind: str) -> str:
    numbers = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "FLOAT", "DOUBLE", "DECIMAL", "U")
    return "number" if kind.startswith(numbers) and not kind.startswith("UUID") and "[" not in kind else (
        "text" if kind.startswith("VARCHAR") and "[" not in kind else "other"
    )  # fmt: skip


def page(table: Path, ask: Ask) -> Page:
    """Reads a page.

    Raises:
        JobError: a column is not there.
    """
    with opened(table) as database:
        kinds = columns_of(database)
        for name in [*(one.column for one in ask.filters), *([ask.sort] if ask.sort else [])]:
            if name not in kinds:
                raise JobError(f"the joined table has no column {name!r}")
        conditions, values = _conditions(ask, kinds)
        limit, offset = max(0, min(ask.limit, MOST_ROWS)), max(0, ask.offset)
        (total,) = one(database, "select count(*) from joined")
        where = f"where {' and '.join(conditions)}" if conditions else ""
        found = one(database, f"select count(*) from joined {where}", values)[0] if conditions else total  # noqa: S608 - bound values
        order = (
            f"order by {quoted(ask.sort)} {'desc' if ask.descending else 'asc'} nulls last, file_row_number"
            if ask.sort
            else ""
        )
        if order or conditions:  # only the numbers are sorted; the page's rows are read by them
            numbers = f"select file_row_number from joined {where} {order} limit {limit} offset {offset}"  # noqa: S608 - the same
            picked = [row[0] for row in database.execute(numbers, values).fetchall()]
        else:
            picked = list(range(offset, min(offset + limit, total)))
        return Page(_cells(database, kinds, picked), found, total)


def _conditions(ask: Ask, kinds: dict[str, str]) -> tuple[list[str], list[Any]]:
    conditions, values = [], []
    for filter_ in ask.filters:
        name = quoted(filter_.column)
        match filter_.operator:
            case "=":
                conditions.append(f"{name}::varchar = ?")
                values.append(filter_.value)
            case "contains":
                conditions.append(f"contains(lower({name}::varchar), lower(?))")
                values.append(filter_.value)
            case ">" | "<":
                conditions.append(f"try_cast({name}::varchar as double) {filter_.operator} try_cast(? as double)")
                values.append(filter_.value)
    if ask.search:
        texts = [name for name, kind in kinds.items() if kind == "VARCHAR"]
        anywhere = " or ".join(f"contains(lower({quoted(name)}), lower(?))" for name in texts) or "false"
        conditions.append(f"({anywhere})")
        values += [ask.search] * len(texts)
    return conditions, values


def _cells(database: Any, kinds: dict[str, str], numbers: list[int]) -> list[dict[str, Any]]:
    """Some rows by their numbers, in that order."""
    if not numbers:
        return []
    shown = ", ".join(
        f"{quoted(name)} as c{at}"
        if _kind(kind) == "number"
        else f"left({quoted(name)}::varchar, {_CELL + 1}) as c{at}"
        for at, (name, kind) in enumerate(kinds.items())
    )
    between = f"file_row_number between {min(numbers)} and {max(numbers)}"
    wanted = f"{between} and file_row_number in ({', '.join(map(str, numbers))})"
    found = database.execute(f"select file_row_number, {shown} from joined where {wanted}").fetchall()  # noqa: S608 - numbers and quoted names
    rows = {row[0]: {"row": row[0], **dict(zip(kinds, map(_cell, row[1:]), strict=True))} for row in found}
    return [rows[number] for number in numbers if number in rows]


def _cell(value: Any) -> Any:
    return value[:_CELL] + "…" if isinstance(value, str) and len(value) > _CELL else value
