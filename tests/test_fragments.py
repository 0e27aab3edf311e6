"""A build by fragments: the same requests by whomever they are rendered, and none rendered twice in vain."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from overnight.builds.checks import check_run
from overnight.builds.pieces import Pieces, recipe_of
from overnight.builds.staging import known_ids, stage, superseded_shards
from overnight.errors import DatasetError, InvalidRequests
from overnight.ledger.run import Run, open_run
from overnight.rows import fragments
from overnight.store.spread import end_clusters
from tests.conftest import MakeJob, ProviderProcess
from tests.steps import build, run_job

FIRST, SECOND, THIRD = ["a", "b", "c"], ["d", "b", None], ["e"]


@pytest.fixture(scope="module", autouse=True)
def workers() -> Iterator[None]:
    """Ends those that tests start."""
    yield
    end_clusters()


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    """A dataset of two files, which are two fragments."""
    folder = tmp_path / "parts"
    folder.mkdir()
    write(folder / "1.jsonl", FIRST)
    write(folder / "2.jsonl", SECOND, first=len(FIRST))
    return folder


def write(path: Path, texts: Sequence[str | None], first: int = 0) -> None:
    path.write_text("".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(texts, first)))


def rendered(run: Run) -> list[str]:
    """The texts of the rows that a build would render, in order: of the others it makes no lines."""
    known = known_ids(run.job, run.folder, run.ledger, superseded_shards(run.job, run.ledger))
    pieces = Pieces(run, check_run(run), run.folder.staging, known)
    lines = [
        line for piece in pieces for at, line in enumerate(piece.requests.lines) if at not in piece.requests.errors
    ]
    return [json.loads(line)["body"]["messages"][0]["content"] for line in lines]


def contents(folder: Path) -> dict[str, Any]:
    """What a build staged; its map of rows without the name of the build."""
    found: dict[str, Any] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".jsonl"}
    return found | {"rows": pq.read_table(folder / "rows.parquet").replace_schema_metadata()}


@pytest.mark.parametrize("runner", ["processes", "dask"])
@pytest.mark.parametrize("more", [{}, {"key": ["id"]}], ids=["", "with a key"])
def test_whoever_renders_the_fragments_a_build_is_the_same(
    make_job: MakeJob, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str, more: dict[str, Any]
) -> None:
    job = make_job([], dataset={"path": str(parts), **more})
    here = open_run(job, home=str(tmp_path / "here"))
    assert stage(here).requests == 4
    monkeypatch.setenv("OVERNIGHT_RUNNER", runner)
    away = open_run(job, home=str(tmp_path / "away"))
    assert stage(away).unsendable == 1
    assert contents(away.folder.staging) == contents(here.folder.staging)
    assert not list(away.folder.staging.glob("*.rendered"))


@pytest.mark.parametrize("runner", ["threads", "processes"])
def test_what_is_wrong_in_a_fragment_is_said_with_the_number_of_its_row(
    make_job: MakeJob, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, runner: str
) -> None:
    monkeypatch.setenv("OVERNIGHT_RUNNER", runner)
    job = make_job([], dataset={"path": str(parts)}, task={"kind": "raw", "body": "text"}, model=None)
    with pytest.raises(InvalidRequests) as raised:
        stage(open_run(job, home=str(tmp_path / "home")))
    assert [problem.where for problem in raised.value.problems] == ["row 1", "row 2", "row 3", "row 4", "row 5"]
    write(parts / "2.jsonl", SECOND, first=2)
    job = make_job([], dataset={"path": str(parts), "key": ["id"]})
    with pytest.raises(DatasetError, match=r"row 4: id=2 stands in an earlier row too"):
        stage(open_run(job, home=str(tmp_path / "home")))


@pytest.mark.parametrize("key", [[], ["id"]], ids=["", "with a key"])
def test_of_a_longer_dataset_the_new_fragments_alone_are_rendered(
    make_job: MakeJob, parts: Path, tmp_path: Path, provider_server: ProviderProcess, key: list[str]
) -> None:
    job = make_job([], dataset={"path": str(parts), "key": key})
    run, before = run_job(job, tmp_path / "home")
    assert rendered(run) == []
    write(parts / "3.jsonl", THIRD, first=6)
    write(parts / "0.jsonl", ["f"], first=7)
    assert rendered(run) == ["f", "e"]
    run, after = run_job(job, tmp_path / "home")
    assert [*after["custom_id"][1:7]] == [*before["custom_id"]]
    assert [*after["answer"][1:7].fillna("")] == [*before["answer"].fillna("")]
    assert len(after) == 8
    assert set(provider_server.books()["billed"].values()) == {1}
    if key:
        write(parts / "3.jsonl", THIRD, first=0)
        with pytest.raises(DatasetError, match=r"row 8: id=0 stands in an earlier row too"):
            stage(run)


def test_a_fragment_is_rendered_again_where_its_bytes_or_what_is_asked_changed_or_a_request_is_to_be_sent(
    make_job: MakeJob, parts: Path, tmp_path: Path
) -> None:
    job = make_job([], dataset={"path": str(parts)})
    home = tmp_path / "home"
    run, _ = run_job(job, home)
    write(parts / "2.jsonl", ["d", "b", "B"], first=3)
    assert rendered(run) == ["d", "b", "B"]
    write(parts / "2.jsonl", SECOND, first=3)
    assert rendered(run) == []
    assert rendered(open_run(job | {"parameters": {"temperature": 1}}, home=str(home))) == ["a", "b", "c", "d", "b"]
    planned = build(job | {"name": "planned"}, home)  # its requests may stand in other files by the next build
    assert rendered(planned) == ["a", "b", "c", "d", "b"]
    run.folder.path.joinpath("rows.parquet").write_bytes(b"damaged")
    assert rendered(run) == ["a", "b", "c", "d", "b"]


@pytest.mark.parametrize(
    ("fields", "known"),
    [
        ({}, True),
        ({"task": {"kind": "generate", "prompt": "{{ text | upper }}"}}, True),
        ({"deduplicate": False}, False),
        ({"deduplicate": False, "dataset": {"path": "a.jsonl", "key": ["text"]}}, True),
        ({"task": {"kind": "generate", "prompt": "What is it?", "images": ["{{ text }}"]}}, False),
    ],
    ids=["a column", "a template", "rows that count the same before them", "rows told apart by a key", "files"],
)
def test_requests_are_known_again_where_the_row_alone_decides(
    make_job: MakeJob, fields: dict[str, Any], known: bool
) -> None:
    run = open_run(make_job([]) | fields)
    schema = pa.schema([("text", pa.string())])
    recipe = recipe_of(run.job, schema)
    assert (recipe is not None) is known
    assert recipe is None or recipe != recipe_of(run.job, schema.append(pa.field("other", pa.string())))


def test_row_groups_are_gathered_and_a_file_that_grew_has_the_same_fragments_and_new_ones(
    make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fragments, "_FRAGMENT_ROWS", 20)
    path = tmp_path / "a.parquet"
    run = open_run(make_job([], dataset={"path": str(path)}), home=str(tmp_path / "home"))

    def fragments_of(rows: int) -> list[tuple[str, list[int]]]:
        with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
            for start in range(0, rows, 10):
                ids = list(range(start, min(start + 10, rows)))
                writer.write_table(pa.table({"id": ids, "text": [str(one) for one in ids]}))
        found = run.rows()
        assert [one for batch in found.batches() for one in batch["id"].to_pylist()] == list(range(rows))
        return [
            (piece.digest(), [one for batch in piece.batches() for one in batch["id"].to_pylist()])
            for piece in found.fragments
        ]

    before, after = fragments_of(45), fragments_of(62)
    assert [rows for _, rows in before] == [[*range(20)], [*range(20, 40)], [*range(40, 45)]]
    assert after[:2] == before[:2]
    assert [rows for _, rows in after[2:]] == [[*range(40, 60)], [60, 61]]
    assert len(set(dict(after))) == 4


def test_columns_that_change_their_names_are_another_fragment(make_job: MakeJob, tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    run = open_run(make_job([], dataset={"path": str(path)}), home=str(tmp_path / "home"))
    digests = []
    for names in (["q", "a"], ["a", "q"]):
        pq.write_table(pa.table([["x"], ["y"]], names=names), path)
        digests += [one.digest() for one in run.rows().fragments]
    assert len(set(digests)) == 2


def test_a_row_without_a_request_does_not_use_up_the_canary(make_job: MakeJob, tmp_path: Path) -> None:
    folder = tmp_path / "bodies"
    folder.mkdir()
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    (folder / "1.jsonl").write_text('{"body": null}\n')
    lines = [json.dumps({"body": json.dumps({**body, "seed": n})}) + "\n" for n in range(20)]
    (folder / "2.jsonl").write_text("".join(lines))
    limits = {"canary_rows": 5, "poll_seconds": 0.02}
    job = make_job([], dataset={"path": str(folder)}, task={"kind": "raw", "body": "body"}, model=None, limits=limits)
    build = stage(open_run(job, home=str(tmp_path / "home")))
    assert [(shard.requests, shard.canary) for shard in build.shards] == [(5, 1), (15, None)]
