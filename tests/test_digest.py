"""The digest of columns' values, by which an append is known again."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.answers import digest

_KINDS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int64(), st.integers(-(2**63), 2**63 - 1)),
    (pa.uint8(), st.integers(0, 255)),
    (pa.float64(), st.floats()),
    (pa.bool_(), st.booleans()),
    (pa.string(), st.text(max_size=5)),
    (pa.string_view(), st.text(max_size=5)),
    (pa.binary(2), st.binary(min_size=2, max_size=2)),
    (pa.decimal128(9, 2), st.decimals(min_value=-9999, max_value=9999, places=2)),
    (pa.timestamp("us", "UTC"), st.datetimes(min_value=datetime(1970, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001 - hypothesis asks for a naive one
    (pa.date32(), st.dates(min_value=date(1970, 1, 1))),
    (pa.null(), st.none()),
    (pa.list_(pa.int32()), st.lists(st.one_of(st.none(), st.integers(0, 9)), max_size=3)),
    (pa.list_(pa.int32(), 2), st.lists(st.integers(0, 9), min_size=2, max_size=2)),
    (pa.map_(pa.string(), pa.int64()), st.lists(st.tuples(st.text(max_size=2), st.integers(0, 9)), max_size=2)),
    (
        pa.struct([("a", pa.int64()), ("b", pa.list_(pa.string()))]),
        st.fixed_dictionaries({"a": st.none(), "b": st.lists(st.text(max_size=2), max_size=2)}),
    ),
]


def values_digest(table: pa.Table) -> str:
    return digest.values_digest(table.schema, table.to_batches())


@st.composite
def columns(draw: st.DrawFn) -> pa.Table:
    kind, values = draw(st.sampled_from(_KINDS))
    return pa.table({"column": pa.array(draw(st.lists(st.one_of(st.none(), values), max_size=8)), kind)})


@given(columns(), st.integers(1, 4))
def test_a_digest_is_the_same_wherever_batches_end(table: pa.Table, rows: int) -> None:
    cut = pa.concat_tables([table.slice(at, rows) for at in range(0, table.num_rows, rows)] or [table])
    assert values_digest(cut) == values_digest(table.combine_chunks())


def test_a_categorical_column_counts_as_its_values_whatever_its_dictionaries_hold() -> None:
    texts = pa.array(["a", None, "b", "a"])
    encoded = pa.chunked_array([texts.slice(0, 2).dictionary_encode(), texts.slice(2).dictionary_encode()])
    assert values_digest(pa.table({"x": encoded})) == values_digest(pa.table({"x": texts}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"x": ["a", "bc"]}, {"x": ["ab", "c"]}),
        ({"x": ["a", None]}, {"x": ["a", ""]}),
        ({"x": [1, 2]}, {"x": [2, 1]}),
        ({"x": [1]}, {"y": [1]}),
        ({"x": [1], "y": [2]}, {"y": [2], "x": [1]}),
        ({"x": [[1], [2, 3]]}, {"x": [[1, 2], [3]]}),
        ({"x": [{"a": None}]}, {"x": pa.array([None], pa.struct([("a", pa.null())]))}),
        ({"x": [Decimal("1.50")]}, {"x": [Decimal("1.51")]}),
        ({"x": [Decimal("1.50")]}, {"x": ["1.50"]}),
        ({"x": ["a"]}, {"x": [b"a"]}),
        ({"x": [0]}, {"x": [0.0]}),
        ({"x": [True]}, {"x": pa.array([1], pa.int8())}),
        ({"x": pa.array([1000], pa.timestamp("ms"))}, {"x": pa.array([1000], pa.timestamp("us"))}),
        ({"x": pa.array([1], pa.timestamp("s"))}, {"x": pa.array([1], pa.timestamp("s", "UTC"))}),
        ({"x": pa.array([], pa.int64())}, {"y": pa.array([], pa.int64())}),
    ],
)
def test_other_values_have_another_digest(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert values_digest(pa.table(one)) != values_digest(pa.table(other))
