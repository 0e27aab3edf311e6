"""Datasets: csv, parquet and jsonl, streamed with one schema for all files."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overnight.errors import DatasetError
from overnight.job.job import Dataset
from overnight.rows.dataset import Rows, open_dataset
from overnight.rows.fragments import BATCH_ROWS
from overnight.rows.frames import save_frame


def opened(path: Path | str, **fields: Any) -> Rows:
    return open_dataset(Dataset(path=str(path), **fields))


def all_rows(rows: Rows) -> list[dict[str, Any]]:
    """As the joined table has them."""
    return [
        row
        for batch in rows.batches()
        for row in pa.RecordBatch.from_arrays(rows.keep(batch), schema=rows.kept).to_pylist()
    ]


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_csv_jsonl_and_parquet_give_the_same_rows(tmp_path: Path) -> None:
    rows = [{"id": n, "text": f'text, "{n}"\nline ü 好'} for n in range(5)]
    frame = pd.DataFrame(rows)
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame.to_parquet(tmp_path / "a.parquet")
    write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    for name in ("a.csv", "a.parquet", "a.jsonl"):
        assert all_rows(opened(tmp_path / name)) == rows


def test_a_folder_and_a_glob_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write(tmp_path / "many" / f"{name}.csv", f"x\n{name}\n")
    write(tmp_path / "many" / "README.md", "not data")
    assert [row["x"] for row in all_rows(opened(tmp_path / "many"))] == ["a", "b", "c"]
    assert [row["x"] for row in all_rows(opened(f"{tmp_path}/many/[ab].csv"))] == ["a", "b"]


def test_files_of_any_fsspec_filesystem_are_read() -> None:
    import fsspec  # noqa: PLC0415 - only here

    with fsspec.open("memory://bucket/rows.csv", "w") as stream:
        stream.write("x\n1\n")
    assert all_rows(opened("memory://bucket/rows.csv")) == [{"x": 1}]


def test_compressed_text_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(b'{"x": 1}\n'))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"x\n1\n"))
    assert all_rows(opened(tmp_path / "a.jsonl.gz")) == all_rows(opened(tmp_path / "a.csv.gz")) == [{"x": 1}]


def test_a_csv_column_that_turns_to_text_late_is_text_throughout(tmp_path: Path) -> None:
    lines = [f"{n},{n}" for n in range(200_000)]
    path = write(tmp_path / "a.csv", "id,code\n" + "\n".join(lines) + "\n200000,X-1\n")
    rows = opened(path)
    assert rows.schema.types == rows.kept.types == [pa.int64(), pa.string()]
    assert sum(batch.num_rows for batch in rows.batches()) == 200_001


def test_only_empty_csv_fields_are_null(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", 'x,y\nNA,1\nNone,2\n,3\n"",4\n')
    assert [row["x"] for row in all_rows(opened(path))] == ["NA", "None", None, ""]


def test_jsonl_rows_may_have_different_keys_and_number_types(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": 1}\n\n{"a": 2.5, "b": ["x"]}\n{"c": null}')
    assert all_rows(opened(path)) == [
        {"a": 1.0, "b": None, "c": None},
        {"a": 2.5, "b": ["x"], "c": None},
        {"a": None, "b": None, "c": None},
    ]


def test_batches_are_small_whatever_the_file_has(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": list(range(10_000))}), tmp_path / "a.parquet", row_group_size=10_000)
    assert max(batch.num_rows for batch in opened(tmp_path / "a.parquet").batches()) <= BATCH_ROWS


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        pytest.param("a.csv", "", "has no rows", id="empty file"),
        pytest.param("a.csv", "x,y\n", "has no rows", id="only a header"),
        pytest.param("a.jsonl", "\n\n", "has no rows", id="only blank lines"),
        pytest.param("a.csv", "x,y\n1,2\n3\n", "Row #3", id="a short row"),
        pytest.param("a.jsonl", '{"x": 1}\n{"x": 2\n', r"a\.jsonl:2: not a JSON object", id="broken JSON"),
        pytest.param("a.parquet", "not parquet at all", r"cannot read .*a\.parquet", id="no Parquet"),
        pytest.param("a.xlsx", "x", "files of one format are needed", id="unknown format"),
        pytest.param("a.csv", "x,x\n1,2\n", "two columns named 'x'", id="a column twice"),
        pytest.param("a.csv", "x\nhé\n".encode("latin-1"), "is not UTF-8 text", id="Latin-1"),
    ],
)
def test_an_unusable_file_is_one_clear_error(tmp_path: Path, name: str, text: str | bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        opened(write(tmp_path / name, text))


def test_text_that_is_no_utf8_is_refused_in_parquet_too(tmp_path: Path) -> None:
    broken = pa.array([b"good", b"\xff\xfe"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"x": broken}), tmp_path / "a.parquet")
    with pytest.raises(DatasetError, match=r"cannot read .*a\.parquet: .*UTF8"):
        all_rows(opened(tmp_path / "a.parquet"))


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"there is no dataset at .*nothing\.csv"):
        opened(tmp_path / "nothing.csv")
    with pytest.raises(DatasetError, match="Protocol not known"):
        opened("nofs://bucket/x.csv")
    with pytest.raises(DatasetError, match=r"set dataset\.path"):
        opened("")


def test_files_with_other_columns_are_named(tmp_path: Path) -> None:
    write(tmp_path / "d/a.csv", "x,y\n1,2\n")
    write(tmp_path / "d/b.csv", "x,z\n1,2\n")
    with pytest.raises(DatasetError, match=r"b\.csv: its columns differ from .*a\.csv: y, z"):
        opened(tmp_path / "d")


def test_files_with_other_types_are_an_error_up_front(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": [1]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"x": ["text"]}), tmp_path / "b.parquet")
    with pytest.raises(DatasetError, match="columns of different types"):
        opened(f"{tmp_path}/*.parquet")


def test_a_key_has_to_be_a_column(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"dataset\.key names nope; the columns are: x"):
        opened(write(tmp_path / "a.csv", "x\n1\n"), key=("nope",))


def test_the_fingerprint_changes_with_the_files_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "x\n1\n")
    before = opened(path).fingerprint
    assert opened(path).fingerprint == before
    write(path, "x\n1\n2\n")
    assert opened(path).fingerprint != before


def test_a_frame_is_kept_once(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1, 2], "t": ["a", None]})
    path = tmp_path / "dataset.parquet"
    save_frame(frame, path)
    before = path.stat().st_mtime_ns
    save_frame(frame, path)
    assert path.stat().st_mtime_ns == before
    save_frame(frame.assign(x=[3, 4]), path)
    assert [row["x"] for row in all_rows(opened(path))] == [3, 4]


@pytest.mark.parametrize("frame", [[1, 2], pd.DataFrame({"x": []}), pd.DataFrame({"x": [object(), 1]})])
def test_a_frame_that_cannot_be_kept_is_refused(tmp_path: Path, frame: Any) -> None:
    with pytest.raises(DatasetError, match="DataFrame"):
        save_frame(frame, tmp_path / "dataset.parquet")
    assert list(tmp_path.iterdir()) == []


def test_csv_values_reach_the_prompt_as_they_stand_in_the_file(tmp_path: Path) -> None:
    text = "id,zip,price,share,phone,flag,day\n1,00123,1.50,0.5,+331,true,2024-01-02\n-2,99999,2.25,-1.25,+332,false,\n"
    rows = opened(write(tmp_path / "a.csv", text))
    kinds = {field.name: str(field.type) for field in rows.schema}
    assert kinds == {"id": "int64", "zip": "string", "price": "string", "share": "double", "phone": "string",
                     "flag": "string", "day": "string"}  # fmt: skip
    assert all_rows(rows)[0] == {"id": 1, "zip": "00123", "price": "1.50", "share": 0.5, "phone": "+331",
                                 "flag": "true", "day": "2024-01-02"}  # fmt: skip


def test_text_in_jsonl_stays_text_whatever_it_looks_like(tmp_path: Path) -> None:
    rows = opened(write(tmp_path / "a.jsonl", '{"day": "2024-01-02", "in": {"at": ["2024-01-02T10:00:00Z"]}}\n'))
    assert all_rows(rows) == [{"day": "2024-01-02", "in": {"at": ["2024-01-02T10:00:00Z"]}}]


def test_a_column_that_is_text_in_one_csv_file_is_text_in_all(tmp_path: Path) -> None:
    write(tmp_path / "d/a.csv", "x\n1\n")
    write(tmp_path / "d/b.csv", "x\nA1\n")
    assert [row["x"] for row in all_rows(opened(tmp_path / "d"))] == ["1", "A1"]


def test_a_file_whose_name_looks_like_a_glob_is_a_file(tmp_path: Path) -> None:
    assert all_rows(opened(write(tmp_path / "r[1].csv", "x\n1\n"))) == [{"x": 1}]
