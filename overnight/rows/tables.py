"""The tables that people open: the map of rows, and the joined table."""

from __future__ import annotations

import pyarrow as pa

from overnight.errors import JobError
from overnight.job.answer import Answer

ROWS = pa.schema(
    [
        pa.field("row", pa.int64(), nullable=False),
        pa.field("custom_id", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
    ]
)
"""The map of rows: number from 0 in the dataset's order and its request, or why it has none."""


def added_fields(answer: Answer) -> list[pa.Field]:
    """The columns that the join adds, in their order, without the prefix."""
    answers = [pa.field("answer", pa.string())]
    answers += [pa.field(f"answer_{column.name}", column.type) for column in answer.columns]
    answers += [extra.field for extra in answer.extras]
    if answer.kind == "embedding":
        answers = [pa.field("embedding", answer.type)]
    return [
        pa.field("custom_id", pa.string()),
        pa.field("status", pa.string(), nullable=False),
        *answers,
        pa.field("finish_reason", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("error_message", pa.string()),
        pa.field("model", pa.string()),
        pa.field("input_tokens", pa.int64()),
        pa.field("output_tokens", pa.int64()),
        pa.field("cached_tokens", pa.int64()),
        pa.field("reasoning_tokens", pa.int64()),
        pa.field("cost_usd", pa.float64()),
        pa.field("batch_id", pa.string()),
        pa.field("attempts", pa.int32()),
    ]


def joined_schema(dataset: pa.Schema, answer: Answer, prefix: str) -> pa.Schema:
    """The dataset's columns, then the added ones.

    Raises:
        JobError: the dataset has a column of the same name as an added one.
    """
    added = [field.with_name(prefix + field.name) for field in added_fields(answer)]
    if taken := [field.name for field in added if field.name in dataset.names]:
        raise JobError(f"the dataset has columns named {', '.join(taken)}, as the joined table will: "
                       "set output.prefix, such as output: {prefix: ai_}")  # fmt: skip
    return pa.schema([*dataset, *added], metadata=dataset.metadata)
