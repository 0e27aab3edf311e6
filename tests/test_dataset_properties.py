"""Properties of datasets: a prompt prints what a file says, and the joined table has the dataset's values and types."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.rows.frames import save_frame
from tests.test_cases import joined, opened, prompts

SLOW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
TYPES: dict[pa.DataType, st.SearchStrategy[Any]] = {
    pa.string(): text,
    pa.large_string(): text,
    pa.int8(): st.integers(-128, 127),
    pa.uint64(): st.integers(0, 2**64 - 1),
    pa.int64(): st.integers(-(2**63), 2**63 - 1),
    pa.decimal128(38, 9): st.decimals(-(10**20), 10**20, places=9),
    pa.float32(): st.floats(width=32, allow_nan=False, allow_infinity=False),
    pa.date32(): st.dates(),
    pa.timestamp("us"): st.datetimes(),
    pa.dictionary(pa.int32(), pa.string()): text,
}


def printed(value: Any, kind: pa.DataType) -> str:
    """How a value is written out by its own type."""
    if pa.types.is_decimal(kind):
        return format(value, "f")
    return str(np.float32(value)) if pa.types.is_float32(kind) else str(value)


@st.composite
def tables(draw: st.DrawFn) -> pa.Table:
    kinds = draw(st.lists(st.sampled_from(list(TYPES)), min_size=1, max_size=4))
    rows = draw(st.integers(1, 5))
    columns = [pa.array(draw(st.lists(st.none() | TYPES[kind], min_size=rows, max_size=rows)), kind) for kind in kinds]
    return pa.table(columns, names=[f"c{n}" for n in range(len(kinds))])


@SLOW
@given(table=tables())
def test_any_arrow_table_is_printed_and_kept_as_it_is(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "a.parquet")
    rows = opened(tmp_path / "a.parquet")
    assert joined(rows).equals(table.cast(rows.kept))
    assert [field.type for field in rows.kept] == [field.type for field in table.schema]
    for number, field in enumerate(table.schema):
        name = f"c{number}"
        expected = ["null_input" if value is None else printed(value, field.type) for value in table[name].to_pylist()]
        assert prompts(rows, f"{{{{ {name} }}}}") == expected


cell = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r"), max_size=8) | st.sampled_from(
    ["1", "2.5", "0.10", "007", "-3", "1e5", "", "NA", "true", "12345678901234567890"]
)


@SLOW
@given(
    rows=st.lists(st.lists(cell, min_size=2, max_size=2), min_size=1, max_size=6),
    delimiter=st.sampled_from([",", ";", "\t", "|"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
)
def test_a_csv_file_reads_as_pythons_own_csv_reads_it(
    tmp_path: Path, rows: list[list[str]], delimiter: str, quoting: Any, encoding: str
) -> None:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, delimiter=delimiter, quoting=quoting, lineterminator="\n")
    writer.writerows([["first", "second"], *rows])
    path = tmp_path / "a.csv"
    path.write_bytes(stream.getvalue().encode(encoding))
    expected = list(csv.DictReader(io.StringIO(stream.getvalue(), newline=""), delimiter=delimiter))
    read = opened(path, delimiter=delimiter)
    for name in ("first", "second"):
        found = [one for batch in read.batches() for one in batch[name].to_pylist()]
        assert ["" if one is None else str(one) for one in found] == [row[name] for row in expected]


scalar = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | text
)
value = st.recursive(scalar, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3))


@SLOW
@given(
    rows=st.lists(st.dictionaries(st.sampled_from(["a", "b"]), value), min_size=1, max_size=6), ascii_only=st.booleans()
)
def test_json_lines_read_as_pythons_own_json_reads_them(
    tmp_path: Path, rows: list[dict[str, Any]], ascii_only: bool
) -> None:
    lines = [json.dumps(row, ensure_ascii=ascii_only) for row in rows]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    if not any(rows):
        return  # rows without any key
    read = opened(path)
    for name in read.schema.names:
        form = (read.schema.field(name).metadata or {}).get(b"form", b"").decode()
        found = [one for batch in read.batches() for one in batch[name].to_pylist()]
        for one, row in zip(found, rows, strict=True):
            wanted = row.get(name)
            if one is None or wanted is None:
                assert one is wanted is None
            elif form == "json":
                assert json.loads(one) == wanted
            elif isinstance(wanted, str) or isinstance(one, bool):
                assert one == wanted
            elif isinstance(one, str):  # a number, or a word of JSON, in a column of text
                assert json.loads(one, parse_float=Decimal) == json.loads(json.dumps(wanted), parse_float=Decimal)
            else:
                assert one == wanted
                assert type(one) is type(wanted)


index = st.sampled_from([
    pd.RangeIndex,
    lambda n: pd.RangeIndex(5, 5 + 2 * n, 2),
    lambda n: pd.Index(range(1, 2 * n, 2)),
    lambda n: pd.Index([f"k{i}" for i in range(n)], name="key"),
    lambda n: pd.MultiIndex.from_tuples([("a", i) for i in range(n)], names=["p", "q"]),
    lambda n: pd.date_range("2024-01-01", periods=n, name="day", unit="us"),
])  # fmt: skip
COLUMNS: dict[str, Any] = {
    "nullable": lambda n: pd.array([None, *range(1, n)], dtype="Int64"),
    "decimals": lambda n: [Decimal("0.10")] * n,
    "categories": lambda n: pd.Categorical(["b", "a", "b", "c"][:n], categories=["c", "b", "a"], ordered=True),
    "intervals": lambda n: pd.interval_range(0, n),
    "text": lambda n: ["é", None, "", "x"][:n],
    "flags": lambda n: pd.array([True, None, False, True][:n], dtype="boolean"),
    "spans": lambda n: pd.to_timedelta(range(n), unit="s"),
}


@SLOW
@given(make=index, names=st.lists(st.sampled_from(list(COLUMNS)), min_size=1, unique=True), rows=st.integers(1, 4))
def test_a_data_frame_comes_back_with_its_index_and_types(
    tmp_path: Path, make: Any, names: list[str], rows: int
) -> None:
    frame = pd.DataFrame({name: COLUMNS[name](rows) for name in names})
    frame.index = make(rows)
    save_frame(frame, tmp_path / "dataset.parquet")
    read = opened(tmp_path / "dataset.parquet")
    assert set(index_names := [name for name in frame.index.names if name]) <= set(read.schema.names), index_names
    pq.write_table(joined(read), tmp_path / "joined.parquet")
    pd.testing.assert_frame_equal(pq.read_table(tmp_path / "joined.parquet").to_pandas(), frame, check_freq=False)


def test_a_named_index_is_a_column_to_a_template(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1, 2]}, index=pd.Index([3, 1], name="key"))
    save_frame(frame, tmp_path / "dataset.parquet")
    assert prompts(opened(tmp_path / "dataset.parquet", key=["key"]), "{{ key }}: {{ x }}") == ["3: 1", "1: 2"]


def test_intervals_of_a_cut_are_their_texts(tmp_path: Path) -> None:
    save_frame(pd.DataFrame({"age": pd.cut([1, 5], [0, 2, 9])}), tmp_path / "dataset.parquet")
    assert prompts(opened(tmp_path / "dataset.parquet")) == ["(0, 2]", "(2, 9]"]


_ALONE = """
import sys
from pathlib import Path
from flows.shell import spare_pandas
spare_pandas()
from tests.test_cases import opened, prompts
assert "pandas" not in sys.modules
print(*prompts(opened(Path(sys.argv[1]))))
"""


def test_pandas_own_types_print_the_same_in_a_process_without_pandas(tmp_path: Path) -> None:
    ages = pd.arrays.IntervalArray.from_breaks([0, 2, 9])
    months = pd.period_range("2026-01", periods=2, freq="M")
    pd.DataFrame({"age": ages, "month": months}).to_parquet(path := tmp_path / "a.parquet")
    assert (here := prompts(opened(path))) == ["(0, 2]|2026-01", "(2, 9]|2026-02"]
    alone = subprocess.run([sys.executable, "-c", _ALONE, str(path)], capture_output=True, text=True, check=True)
    assert alone.stdout.split("\n")[0] == " ".join(here)


class _Exported:
    """What polars, DuckDB and others hand over: nothing but the Arrow C stream."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def test_whatever_speaks_the_arrow_c_stream_is_a_dataset(tmp_path: Path) -> None:
    views = pa.table({"s": pa.array(["x", None], pa.string_view()), "n": [1, 2]})
    save_frame(_Exported(views), tmp_path / "dataset.parquet")
    assert prompts(opened(tmp_path / "dataset.parquet")) == ["x|1", "null_input"]


def test_a_polars_frame_is_a_dataset(tmp_path: Path) -> None:
    polars = pytest.importorskip("polars", reason="polars is no dependency")
    frame = polars.DataFrame({"s": ["x", "y"], "c": polars.Series(["u", "v"], dtype=polars.Categorical)})
    save_frame(frame, tmp_path / "dataset.parquet")
    assert prompts(opened(tmp_path / "dataset.parquet")) == ["x|u", "y|v"]
