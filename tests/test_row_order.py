"""Results in the order of the rows: the best verdict counts, of equals the latest, whatever order the parts have."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from overnight.answers import row_order
from overnight.answers.verdicts import VERDICTS
from overnight.errors import LedgerError
from overnight.rows.tables import ROWS
from overnight.store.parquet import write_parquet

SCHEMA = pa.schema([("custom_id", pa.string()), ("verdict", pa.string()), ("answer", pa.string())])
Attempts = list[list[tuple[str, str]]]


def in_row_order(folder: Path, rows: list[str | None], parts: Attempts, piece: int) -> list[dict[str, object]]:
    """What is taken for each row, `piece` rows at a time; an answer tells its part."""
    folder.mkdir(parents=True, exist_ok=True)
    row_map = [{"row": n, "custom_id": one, "error_code": None, "error_message": None} for n, one in enumerate(rows)]
    with write_parquet(folder / "rows.parquet", ROWS) as table:
        table.write(pa.RecordBatch.from_pylist(row_map, ROWS))
    paths = []
    for number, results in enumerate(parts):
        lines = [{"custom_id": one, "verdict": verdict, "answer": f"{number} {one}"} for one, verdict in results]
        paths.append(folder / f"{number:04d}.parquet")
        with write_parquet(paths[-1], SCHEMA) as table:
            table.write(pa.RecordBatch.from_pylist(lines, SCHEMA))
    with row_order.row_order(folder / "spill", SCHEMA, folder / "rows.parquet", len(rows), paths) as order:
        taken = [order.take(at, min(piece, len(rows) - at)).to_pylist() for at in range(0, len(rows), piece)]
    assert not (folder / "spill").exists()
    return [row for rows_taken in taken for row in rows_taken]


def expected(rows: list[str | None], parts: Attempts) -> list[tuple[str | None, int | None, bool | None]]:
    best: dict[str, tuple[int, int]] = {}
    attempts: dict[str, int] = {}
    for number, results in enumerate(parts):
        for one, verdict in results:
            attempts[one] = attempts.get(one, 0) + 1
            best[one] = min(best.get(one, (99, 0)), (VERDICTS.index(verdict), -number))
    return [
        (f"{-best[one][1]} {one}", attempts[one], rows.index(one) == at)
        if one is not None and one in best
        else (None,) * 3
        for at, one in enumerate(rows)
    ]


ids = st.sampled_from([f"job-{n}" for n in range(12)])
part = st.dictionaries(ids, st.sampled_from(VERDICTS), max_size=12).map(lambda found: list(found.items()))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rows=st.lists(ids | st.none(), min_size=1, max_size=40),
    parts=st.lists(part, min_size=1, max_size=6),
    piece=st.integers(1, 17),
    file_bytes=st.sampled_from([1, 200, 1 << 20]),
    bucket=st.sampled_from([1, 5, 1000]),
)
def test_every_row_gets_its_best_and_latest_result(
    tmp_path_factory: pytest.TempPathFactory, rows: list[str | None], parts: Attempts, piece: int, file_bytes: int,
    bucket: int,
) -> None:  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_order, "_FILE_BYTES", file_bytes)
        patch.setattr(row_order, "_BUCKET_RESULTS", bucket)
        taken = in_row_order(tmp_path_factory.mktemp("order"), rows, parts, piece)
    assert [(row["answer"], row["attempts"], row["first"]) for row in taken] == expected(rows, parts)


def test_a_damaged_part_is_named_before_anything_is_joined(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"0000\.parquet is damaged: it has a verdict that is none"):
        in_row_order(tmp_path, ["job-1"], [[("job-1", "perhaps")]], 1)


def test_columns_that_an_older_part_lacks_are_null(tmp_path: Path) -> None:
    in_row_order(tmp_path, ["job-1"], [[("job-1", "succeeded")]], 1)
    wider = pa.schema([*SCHEMA, pa.field("reasoning", pa.string())])
    pq.write_table(pa.table({"custom_id": ["job-1"], "verdict": ["succeeded"]}), tmp_path / "old.parquet")
    old = [tmp_path / "old.parquet"]
    with row_order.row_order(tmp_path / "spill", wider, tmp_path / "rows.parquet", 1, old) as order:
        assert order.take(0, 1)["reasoning"].to_pylist() == [None]
