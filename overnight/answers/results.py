"""Result parts: one row per request per attempt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from overnight.answers.verdicts import MAYBE_PAID, PROMPT_FILTERED, SETTLED
from overnight.errors import LedgerError
from overnight.job.answer import Answer
from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.rows.ids import Hashes, id_hashes
from overnight.store.home import shown
from overnight.store.objects import is_there
from overnight.store.parquet import check_rows, open_parquet, read_batches


def result_schema(answer: Answer) -> pa.Schema:
    """Columns of a result part. `raw` is the response's body (or the whole line where it failed), as it came."""
    return pa.schema(
        [
            pa.field("custom_id", pa.string(), nullable=False),
            pa.field("verdict", pa.string(), nullable=False),
            pa.field("answer", answer.type),
            *(pa.field(f"answer_{column.name}", column.type) for column in answer.columns),
            *(extra.field for extra in answer.extras),
            pa.field("finish_reason", pa.string()),
            pa.field("error_code", pa.string()),
            pa.field("error_message", pa.string()),
            pa.field("model", pa.string()),
            pa.field("input_tokens", pa.int64()),
            pa.field("output_tokens", pa.int64()),
            pa.field("cached_tokens", pa.int64()),
            pa.field("service_tier", pa.string()),
            pa.field("reasoning_tokens", pa.int64()),
            pa.field("cost_usd", pa.float64()),
            pa.field("batch_id", pa.string()),
            pa.field("raw", pa.string()),
        ]
    )


def part_name(shard: Shard, batch: Batch) -> str:
    """The file of an attempt's results; the names sort as the attempts were made."""
    return f"{shard.round:04d}-{shard.number:04d}-{batch.id:06d}.parquet"


def unmetered(rows: pa.RecordBatch | pa.Table) -> pa.Array:
    """Which results hold an answer whose tokens the provider does not tell: what it cost is not known."""
    answered = pa.compute.is_in(rows["verdict"], value_set=pa.array(["succeeded", "invalid", "refused"]))
    filtered = pa.compute.is_in(rows["error_code"], value_set=pa.array(sorted(PROMPT_FILTERED)))
    answered = pa.compute.and_not(answered, filtered)
    untold = pa.compute.and_(pa.compute.is_null(rows["input_tokens"]), pa.compute.is_null(rows["output_tokens"]))
    return pa.compute.and_(answered, untold)


def missing_parts(folder: Path, shards: Sequence[Shard]) -> list[tuple[Shard, Batch]]:
    """Attempts that the ledger knows as collected, whose results are not there."""
    collected = [(shard, b) for shard in shards for b in shard.batches if b.state is State.COLLECTED]
    return [(shard, batch) for shard, batch in collected if not is_there(folder / part_name(shard, batch))]


def result_parts(folder: Path, shards: Sequence[Shard]) -> list[Path]:
    """All result parts of a job, oldest first.

    Raises:
        LedgerError: there are fewer, others, or shorter ones than the ledger knows: requests would be paid for twice.
    """
    if missing := missing_parts(folder, shards):
        names = ", ".join(part_name(*one) for one in missing[:5])
        raise LedgerError(
            f"{shown(folder)} lacks {names}, which was collected: run the job, it is made anew from responses/"
        )
    parts = sorted(folder.glob("*.parquet"))  # all that are known are here by now
    known = {part_name(shard, batch) for shard in shards for batch in shard.batches}
    if strange := [part.name for part in parts if part.name not in known]:
        raise LedgerError(
            f"{folder} has {', '.join(strange[:5])}, which the ledger does not know: it is older than the results, or "
            "another one. Restore the ledger that belongs to them"
        )
    for shard in shards:
        for batch in shard.batches:
            if batch.state is State.COLLECTED:
                part = folder / part_name(shard, batch)
                check_rows(part, row_count(part), shard.requests)
    return parts


def settled_ids(parts: Sequence[Path], *, resubmit_lost: bool) -> list[Hashes]:
    """Hashes of the requests that need not, or may not, be sent again, those of a part together.

    Args:
        parts: of a job.
        resubmit_lost: whether those of a lost batch, or of a lost reply in real time, may be: they may have been paid.
    """
    kept, maybe_paid = pa.array(sorted(SETTLED)), pa.array(sorted(MAYBE_PAID))
    found: list[Hashes] = []
    for part in parts:
        of_part = [id_hashes(list[str]())]
        for batch in read_batches(part, ["custom_id", "verdict", "error_code"]):
            held = pc.is_in(batch["error_code"], value_set=maybe_paid)
            final = pc.is_in(batch["verdict"], value_set=kept)
            settled = batch.filter(final if resubmit_lost else pc.or_(final, held))
            if settled.num_rows:
                of_part.append(id_hashes(settled["custom_id"].to_pylist()))
        found.append(np.concatenate(of_part))
    return found


def row_count(part: Path) -> int:
    """Rows of a part, as its footer says."""
    with open_parquet(part) as opened:
        return int(opened.metadata.num_rows)
