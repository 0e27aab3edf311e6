"""Tables that are handed over in memory: pandas DataFrames, and whatever speaks the Arrow C stream (polars, Arrow)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from overnight.errors import DatasetError
from overnight.store.files import atomic_path
from overnight.store.objects import is_there

if TYPE_CHECKING:
    import pandas as pd

_GROUP_ROWS = 16_384


def save_frame(frame: Any, path: Path) -> None:
    """Keeps a table as a Parquet file, unless it is there already.

    Raises:
        DatasetError: it is no table, is empty, or has columns that Parquet cannot hold.
    """
    table = _as_arrow(frame)
    if not table.num_rows:
        raise DatasetError("the DataFrame has no rows")
    if is_there(path) and pq.ParquetFile(path).schema_arrow.equals(table.schema) and pq.read_table(path).equals(table):
        return  # rewriting it would look like another dataset
    try:
        with atomic_path(path) as part:
            pq.write_table(table, part, row_group_size=_GROUP_ROWS)
    except pa.ArrowException as error:
        raise DatasetError(f"the DataFrame cannot be kept as Parquet: {str(error).splitlines()[0]}") from None


def _as_arrow(frame: Any) -> pa.Table:
    if type(frame).__module__.startswith("pandas"):
        table = _from_pandas(frame)
    elif hasattr(frame, "__arrow_c_stream__"):
        table = pa.table(frame).replace_schema_metadata()
    else:
        raise DatasetError(f"dataset= takes a DataFrame (pandas, polars, Arrow), not {type(frame).__name__}; a path "
                           "goes into the job")  # fmt: skip
    return table.cast(pa.schema([f.with_type(_stored(f.type)) for f in table.schema], metadata=table.schema.metadata))


def _from_pandas(frame: pd.DataFrame) -> pa.Table:
    """The columns, and the index as columns too, unless it only counts the rows; pandas' own types in the metadata."""
    import pandas as pd  # noqa: PLC0415 - who hands a DataFrame over has it; others do without its 50 MB

    if not all(isinstance(name, str) for name in frame.columns):  # the joined table adds columns that have names
        frame = frame.set_axis([str(name) for name in frame.columns], axis=1)
    index = frame.index
    counts = isinstance(index, pd.RangeIndex) and index.start == 0 and index.step == 1 and index.name is None
    texts = {
        str(name): column.cat.rename_categories([str(one) for one in column.cat.categories])
        for name, column in frame.items()
        if isinstance(column.dtype, pd.CategoricalDtype) and _is_foreign(column.dtype.categories.dtype)
    }
    try:
        return pa.Table.from_pandas(frame.assign(**texts) if texts else frame, preserve_index=None if counts else True)
    except (pa.ArrowException, ValueError, TypeError) as error:
        why = " ".join(str(one) for one in error.args)
        raise DatasetError(
            f"the DataFrame cannot be kept as Parquet: {why}; leave the column out, or make it text"
        ) from None


def _is_foreign(kind: Any) -> bool:
    """Whether Parquet knows no dictionary of such values: the intervals of `pd.cut`, which become their texts."""
    return str(kind).startswith(("interval", "period"))


def _stored(kind: pa.DataType) -> pa.DataType:
    """A type as Parquet takes it: views become plain texts and bytes."""
    if pa.types.is_dictionary(kind):
        return pa.dictionary(pa.int32(), _stored(kind.value_type), ordered=kind.ordered)
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind
