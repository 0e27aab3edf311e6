"""What data engineers have, as a table: read as it stands in the file, or refused with the file, the line and the mend."""

from __future__ import annotations

import bz2
import gzip
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overnight.errors import DatasetError, TemplateError
from overnight.job.job import Dataset, Job
from overnight.rows import query
from overnight.rows.dataset import Rows, open_dataset
from overnight.rows.requests import request_source

Files = dict[str, str | bytes | pa.Table]


def write(folder: Path, files: Files) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, pa.Table):
            pq.write_table(content, path)
        else:
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder if len(files) > 1 else folder / next(iter(files))


def opened(path: Path | str, **fields: Any) -> Rows:
    return open_dataset(Dataset(path=str(path), **fields))


def prompts(rows: Rows, template: str | None = None) -> list[str]:
    """What a template of all columns prints for each row, or the row's error code."""
    source = template or "|".join(f"{{{{ row['{name}'] }}}}" for name in rows.schema.names)
    task = {"kind": "generate", "prompt": source}
    job = Job.model_validate({"name": "j", "dataset": {"path": "x"}, "task": task, "model": "m"})
    render = request_source(job, rows.schema)
    found = []
    for batch in rows.batches():
        made = render(batch, 0)
        texts = [json.loads(line)["body"]["messages"][0]["content"] for line in made.lines]
        found += [made.errors[at][0] if at in made.errors else text for at, text in enumerate(texts)]
    return found


def joined(rows: Rows) -> pa.Table:
    """The dataset's columns as the joined table has them."""
    batches = [pa.RecordBatch.from_arrays(rows.keep(batch), schema=rows.kept) for batch in rows.batches()]
    return pa.Table.from_batches(batches, rows.kept)


def csv(text: str) -> Files:
    return {"a.csv": text}


def jsonl(*rows: str) -> Files:
    return {"a.jsonl": "".join(f"{row}\n" for row in rows)}


READ = [
    # digits as they stand
    pytest.param(jsonl('{"id": 18446744073709551616}', '{"id": 1}'), ["18446744073709551616", "1"], id="integers above 2⁶³"),
    pytest.param(jsonl('{"id": 9007199254740993}', '{"id": 1.5}'), ["9007199254740993", "1.5"], id="long beside decimal"),
    pytest.param(jsonl('{"p": 5}', '{"p": 4.5}', '{"p": 0.10}'), ["5", "4.5", "0.10"], id="numbers of several forms"),
    pytest.param(jsonl('{"p": 1e5}', '{"p": 1E400}'), ["1e5", "1E400"], id="exponents"),
    pytest.param(jsonl('{"p": 3.14159265358979323846}'), ["3.14159265358979323846"], id="more digits than a double has"),
    pytest.param(csv("p\n5\n4.5\n100\n"), ["5", "4.5", "100"], id="csv numbers"),
    pytest.param(csv("v\n1.10\n1.1\n"), ["1.10", "1.1"], id="csv versions"),
    pytest.param(csv("v\n007\n12\n"), ["007", "12"], id="leading zeros"),
    pytest.param(csv("v\n123456789012345678901\n"), ["123456789012345678901"], id="csv of 21 digits"),
    pytest.param({"a.parquet": pa.table({"d": [Decimal("12345678901234567890.12"), Decimal("0.10")]})}, ["12345678901234567890.12", "0.10"], id="decimals"),
    pytest.param({"a.parquet": pa.table({"d": pa.array([0.1, 5.0], pa.float32())})}, ["0.1", "5.0"], id="floats of 32 bits"),
    pytest.param({"a.parquet": pa.table({"t": pa.array([300_000_000_000_000_000], pa.timestamp("us"))})}, ["11476-08-15 05:20:00.000000"], id="a time past the year 9999"),
    # JSON of every form
    pytest.param(jsonl('{"id": 1}', '{"id": "x2"}', '{"id": true}'), ["1", "x2", "true"], id="text and numbers in one column"),
    pytest.param(jsonl('{"ok": true}', '{"ok": false}'), ["true", "false"], id="booleans"),
    pytest.param(jsonl('{"t": "a", "m": {}}', '{"t": "b", "m": {}}'), ["a|{}", "b|{}"], id="objects without fields"),
    pytest.param(jsonl('{"c": "text"}', '{"c": [{"type": "text"}]}'), ["text", '[{"type": "text"}]'], id="text and lists in one column"),
    pytest.param(jsonl('{"c": []}', '{"c": [null]}'), ["[]", "[null]"], id="lists of nothing"),
    pytest.param(jsonl('{"n": {"id": 12345678901234567890}}'), ['{"n": 1}'.replace('"n": 1', '"id": 12345678901234567890')], id="long integers inside"),
    pytest.param({"p/a.jsonl": '{"id":1,"note":"n"}\n{"id":2}\n', "p/b.jsonl": ""}, ["1|n", "null_input"], id="absent keys, empty part"),
    # how files are written
    pytest.param(csv("id;text\n1;a, b\n"), ["1|a, b"], id="semicolons"),
    pytest.param({"a.tsv": "id\ttext\n1\ta, b\n"}, ["1|a, b"], id="tabs"),
    pytest.param(csv("id|text\n1|a, b; c\n"), ["1|a, b; c"], id="bars"),
    pytest.param(csv("id;price\n1;4,5\n2;3,25\n"), ["1|4,5", "2|3,25"], id="decimal commas"),
    pytest.param(csv("text\n\"a; b\"\nc\n"), ["a; b", "c"], id="one column"),
    pytest.param({"a.csv": "id,text\r\n1,café\r\n".encode("utf-16")}, ["1|café"], id="UTF-16 with a mark"),
    pytest.param({"a.csv": "id,text\n1,cafe\n".encode("utf-16-le")}, ["1|cafe"], id="UTF-16 without a mark"),
    pytest.param({"a.csv": b"\xef\xbb\xbfid,text\n1,caf\xc3\xa9\n"}, ["1|café"], id="UTF-8 with a mark"),
    pytest.param({"a.jsonl": '{"t": "é"}\n'.encode("utf-16")}, ["é"], id="JSON Lines in UTF-16"),
    pytest.param({"a.csv.gz": gzip.compress(b"id\n1\n")}, ["1"], id="gz"),
    pytest.param({"a.csv.bz2": bz2.compress(b"id\n1\n")}, ["1"], id="bz2"),
    pytest.param({"a.csv.zst": pa.compress(b"id\n1\n", "zstd", asbytes=True)}, ["1"], id="zst"),
    pytest.param({"a.jsonl.zst": pa.compress(b'{"id":1}\n', "zstd", asbytes=True)}, ["1"], id="JSON Lines in zst"),
    pytest.param(csv('id,text\n1,"a\nb"\n'), ["1|a\nb"], id="quoted line breaks"),
    # folders
    pytest.param({"h/lang=en/year=2023/a.csv": "t\nx\n", "h/lang=fr/year=2024/a.csv": "t\ny\n"}, ["x|en|2023", "y|fr|2024"], id="hive folders"),
    pytest.param({"h/k=a%20b/a.csv": "t\nx\n", "h/k=__HIVE_DEFAULT_PARTITION__/a.csv": "t\ny\n"}, ["null_input", "x|a b"], id="hive values"),
    pytest.param({"n/a.csv": "t\nx\n", "n/.ipynb_checkpoints/a-checkpoint.csv": "t\nold\n", "n/._a.csv": "t\nz\n", "n/_SUCCESS": "", "n/.a.csv.crc": "?"}, ["x"], id="hidden and marker files"),
    pytest.param({"d/a.parquet": pa.table({"x": pa.array(["a"]).dictionary_encode()}), "d/b.parquet": pa.table({"x": ["b"]})}, ["a", "b"], id="dictionaries in one file"),
    pytest.param({"d/a.parquet": pa.table({"x": ["a"], "y": [1]}), "d/b.parquet": pa.table({"x": ["b"]})}, ["a|1", "null_input"], id="a column that came later"),
    pytest.param(csv("self,range,row\n1,2,3\n"), ["1|2|3"], id="columns of Jinja's names"),
]  # fmt: skip


@pytest.mark.parametrize(("files", "printed"), READ)
def test_a_prompt_says_what_the_file_says(tmp_path: Path, files: Files, printed: list[str]) -> None:
    path = write(tmp_path, files)
    template = "{{ self }}|{{ range }}|{{ row }}" if printed == ["1|2|3"] else None
    rows = opened(path / next(iter(files)).split("/")[0] if len(files) > 1 else path)
    assert prompts(rows, template) == printed
    assert joined(rows).num_rows == len(printed)


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        pytest.param(['{"p": 5}', '{"p": 4.5}'], [5.0, 4.5], id="numbers are numbers"),
        pytest.param(['{"p": 0.10}', '{"p": null}'], [0.1, None], id="and null"),
        pytest.param(['{"p": [1, 2]}', '{"p": []}'], [[1, 2], []], id="lists are lists"),
        pytest.param(['{"p": {"a": 1}}', '{"p": {"b": "x"}}'], [{"a": 1, "b": None}, {"a": None, "b": "x"}], id="objects are structs"),
        pytest.param(['{"p": 18446744073709551616}'], ["18446744073709551616"], id="what no type holds is text"),
        pytest.param(['{"p": {"a": 1}}', '{"p": "x"}'], ['{"a": 1}', '"x"'], id="what no type fits is JSON"),
        pytest.param(['{"p": 9007199254740993}', '{"p": null}', '{"p": 5}'], [9007199254740993, None, 5], id="integers with gaps"),
    ],
)  # fmt: skip
def test_the_joined_table_has_the_values(tmp_path: Path, rows: list[str], kept: list[Any]) -> None:
    assert joined(opened(write(tmp_path, jsonl(*rows))))["p"].to_pylist() == kept


@pytest.mark.parametrize(
    ("files", "fields", "message"),
    [
        pytest.param({"a.csv.gz": gzip.compress(b"id\n" + b"".join(b"%d\n" % n for n in range(3000)))[:-900]}, {}, r"a\.csv\.gz is cut or damaged: it breaks after line [1-9]", id="a cut gz"),
        pytest.param({"a.csv": "id,text\n1,caf\xe9\n".encode("latin-1")}, {}, r"a\.csv:2: it is not UTF-8 text: name its encoding, such as dataset: \{encoding", id="Latin-1"),
        pytest.param({"a.csv": b"id,text\n1,\x81\n"}, {"encoding": "cp1252"}, r"a\.csv:2: it is not cp1252 there", id="another encoding than was named"),
        pytest.param(csv("a\n1\n"), {"encoding": "klingon"}, "Python knows no encoding 'klingon'", id="no encoding"),
        pytest.param(csv("a,b\n1,2\n3\n"), {}, r"a\.csv: .*Row #3: Expected 2 columns, got 1.*dataset: \{delimiter", id="a short row"),
        pytest.param({"a.jsonl": '{"id": 1}\n{"t": "cut \\ud83d"}\n'}, {}, r"a\.jsonl:2: .*surrogate", id="half of a character"),
        pytest.param({"a.json": '[{"a": 1}]\n'}, {}, r"a\.json:1: .*one object per line", id="a JSON array"),
        pytest.param({"a.jsonl": '{"a": NaN}\n'}, {}, r"a\.jsonl:1", id="no JSON"),
        pytest.param({"d/a.parquet": pa.table({"x": [1]}), "d/b.parquet": pa.table({"x": ["t"]})}, {}, "different types.*narrow dataset.path", id="numbers and text in Parquet"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_one_message(tmp_path: Path, files: Files, fields: dict[str, Any], message: str) -> None:
    path = write(tmp_path, files)
    with pytest.raises(DatasetError, match=message):
        opened(path / "d" if len(files) > 1 else path, **fields)


def test_an_encoding_and_a_delimiter_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path, {"a.csv": "a^b\n1^naïve, or not\n".encode("cp1252")})
    assert prompts(opened(path, encoding="cp1252", delimiter="^")) == ["1|naïve, or not"]


def test_a_cell_may_have_any_size(tmp_path: Path) -> None:
    large = "long " * 800_000
    path = write(tmp_path, csv(f'id,text\n1,short\n2,"{large}"\n3,after\n'))
    assert joined(opened(path))["text"].to_pylist() == ["short", large, "after"]
    path = write(tmp_path, {"b.jsonl": json.dumps({"text": large}) + '\n{"text": "after"}\n'})
    assert joined(opened(path / "b.jsonl" if path.is_dir() else path))["text"].to_pylist() == [large, "after"]


def test_numbers_that_are_read_as_text_are_numbers_to_a_template(tmp_path: Path) -> None:
    rows = opened(write(tmp_path, csv("sku,price\nA,5\nB,4.5\n")))
    source = "{{ sku }} {{ price }} {% if price > 4.7 %}dear{% else %}cheap{% endif %} {{ price * 2 }} {{ row.price }}"
    assert prompts(rows, source) == ["A 5 dear 10 5", "B 4.5 cheap 9.0 4.5"]


def test_a_loop_may_take_a_columns_name(tmp_path: Path) -> None:
    rows = opened(write(tmp_path, jsonl('{"price": [1, 2]}', '{"price": [3.5]}')))
    assert prompts(rows, "{% for price in price %}{{ price }};{% endfor %}") == ["1;2;", "3.5;"]


@pytest.mark.parametrize(
    ("query", "fields", "printed"),
    [
        ("select id, upper(t) as t from 'q/*.csv' where id > 1 order by id", {}, ["2|B", "3|C"]),
        ("from 'q/*.csv'", {"key": ["id"]}, ["1|a", "2|b", "3|c"]),
        (
            "select 18446744073709551616::hugeint as n, 1.10::decimal(5, 2) as d order by n",
            {},
            ["18446744073709551616|1.10"],
        ),
    ],
)
def test_a_query_is_a_dataset(tmp_path: Path, query: str, fields: dict[str, Any], printed: list[str]) -> None:
    write(tmp_path, {"q/a.csv": "id,t\n2,b\n1,a\n", "q/b.csv": "id,t\n3,c\n"})
    assert prompts(opened(tmp_path, sql=query, **fields)) == printed


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("select * from 'q/a.csv'", "has no order.*ORDER BY.*dataset.key"),
        ("selec", "syntax error"),
        ("copy (select 1) to 'x.csv'", "Only SELECT"),
        ("select 1 order by 1; select 2 order by 1", "not several statements"),
        ("select nope from 'q/a.csv' order by 1", "nope"),
        ("select * from 'q/none.csv' order by 1", "No files found"),
        ("select * from 'q/a.csv' where id > 9 order by id", "dataset.sql has no rows"),
    ],
)
def test_a_query_that_cannot_be_a_dataset_is_refused(tmp_path: Path, query: str, message: str) -> None:
    write(tmp_path, {"q/a.csv": "id,t\n1,a\n", "q/b.csv": "id,t\n2,b\n"})
    with pytest.raises(DatasetError, match=message):
        opened(tmp_path, sql=query)


def test_a_query_that_needs_too_much_memory_says_the_mend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "_MEMORY", "8MB")
    wide = "select repeat('x', 1000) || i as t from range(100000) r(i) order by hash(i)"
    with pytest.raises(
        DatasetError, match=r"needs more than 8MB: order by narrow columns.*write its result to Parquet"
    ):
        list(opened(tmp_path, sql=wide).batches())


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ row['tilte'] }}", "no column 'tilte'; did you mean 'title'"),
        ("{{ row.tilte }}", "no column 'tilte'; did you mean 'title'"),
        ("Say hello.", "task.prompt names no column.*task.constant: true"),
    ],
)
def test_a_template_that_cannot_be_meant_is_refused(tmp_path: Path, template: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        prompts(opened(write(tmp_path, csv("title\nx\n"))), template)
