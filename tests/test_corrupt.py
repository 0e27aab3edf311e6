"""State that is damaged, gone, or cannot be written: named, left alone, and nothing is paid for twice."""

from __future__ import annotations

import json
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from overnight.answers.results import result_parts
from overnight.errors import HomeError, LedgerError
from overnight.ledger.database import Ledger
from overnight.ledger.run import Run
from overnight.store.files import atomic_open
from overnight.store.parquet import read_batches
from tests.conftest import ROOT, MakeJob, ProviderProcess
from tests.steps import advance, build, finish, run_job

NOISE = random.Random(1)
LONG: list[str | None] = ["".join(NOISE.choices("abcdefghijklmnop", k=10_000)) for _ in range(60)]
SHORT: list[str | None] = ["a", "b", "[400]", "[500 once]"]
READ = ["custom_id", "verdict", "error_code", "batch_id"]
"""What says whether a request is sent again."""
SHORT_STATUSES = {"succeeded": 3, "failed": 1}


def parts_of(run: Run) -> list[Path]:
    return sorted(run.folder.results.glob("*.parquet"))


def flip(path: Path, at: int = 60) -> None:
    """Turns one bit of a byte; the 60th belongs to the ids."""
    content = bytearray(path.read_bytes())
    content[at] ^= 0x10
    path.write_bytes(content)


def cut(path: Path, at: float = 0.5) -> None:
    """Leaves the first fraction of a file."""
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * at)])


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ("build", r"HomeError: cannot write .*/texts/\.staging: File too large"),
        ("ledger", r"LedgerError: the ledger .*ledger\.db cannot be used: .*Make room"),
        ("fetch", r"HomeError: cannot write .*/responses/[0-9a-f]{32}\.output\.jsonl: File too large"),
        ("parse", r"HomeError: cannot write .*/results/0001-0000-000001\.parquet: File too large"),
        ("join", r"HomeError: cannot write .*/\.spill: File too large"),
    ],
)
def test_a_full_disk_is_named_and_the_job_goes_on_when_there_is_room(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, stage: str, said: str
) -> None:
    job, home = make_job(LONG), tmp_path / "home"
    path = tmp_path / "job.json"
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.small_disk", str(path), str(home), stage]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert re.search(said, done.stderr.splitlines()[-1]), done.stderr
    assert [left for left in home.rglob("*") if left.suffix == ".part" or left.name == ".staging"] == []
    _, table = run_job(job, home)
    assert set(table["status"]) == {"succeeded"}
    assert sorted(provider_server.books()["billed"].values()) == [1] * 60


def test_a_disk_that_fills_up_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "joined.parquet"
    path.write_bytes(b"before")
    full = pytest.raises(HomeError, match=r"cannot write .*joined\.parquet: No space left on device.*make room")
    with full, atomic_open(path), Path("/dev/full").open("wb") as stream:
        stream.write(b"x" * 10_000_000)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("joined.parquet", b"before")]


@pytest.mark.parametrize("damage", [pytest.param(cut, id="cut short"), pytest.param(flip, id="a bit turned")])
def test_a_damaged_result_part_is_named_left_alone_and_made_anew_once_it_is_moved_away(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, damage: Any
) -> None:
    run, before = run_job(make_job(SHORT), tmp_path / "home")
    for part in parts_of(run):
        whole = pd.read_parquet(part)
        damage(part)
        damaged = part.read_bytes()
        with pytest.raises(LedgerError, match=rf"{part.name} is damaged .*move it away .*made anew from .*responses"):
            build(run.job, run.home)
        assert part.read_bytes() == damaged
        part.rename(tmp_path / part.name)
        build(run.job, run.home)
        pd.testing.assert_frame_equal(pd.read_parquet(part), whole)
    assert finish(run).statuses == SHORT_STATUSES
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder.joined), before)
    assert sum(provider_server.books()["billed"].values()) == 5


def test_a_bit_that_turns_in_the_pages_of_a_part_changes_no_row_unnoticed(make_job: MakeJob, tmp_path: Path) -> None:
    run, _ = run_job(make_job(SHORT), tmp_path / "home")
    shards, part = run.ledger.shards("texts"), parts_of(run)[0]
    whole, rows = part.read_bytes(), list(read_batches(part, READ))
    footer = int.from_bytes(whole[-8:-4], "little") + 8  # it has no checksum
    noticed = 0
    for at in range(0, len(whole) - footer, 3):
        part.write_bytes(whole)
        flip(part, at)
        try:
            result_parts(run.folder.results, shards)
            found = list(read_batches(part, READ))
        except LedgerError:
            noticed += 1
        else:
            assert [batch.to_pylist() for batch in found] == [batch.to_pylist() for batch in rows], at
    assert noticed > 100


def test_results_that_cannot_be_made_anew_are_not_paid_for_again(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run, _ = run_job(make_job(SHORT), tmp_path / "home")
    parts_of(run)[0].unlink()
    kept = run.folder.responses.rename(tmp_path / "responses")
    with pytest.raises(LedgerError, match=r"output\.jsonl is missing, and so are the results"):
        build(run.job, run.home)
    with pytest.raises(LedgerError, match=r"lacks 0001-0000-000001\.parquet"):
        finish(run)
    kept.rename(run.folder.responses)
    first = run.ledger.shards("texts")[0].batches[0]
    cut(run.folder.responses / f"{first.token}.output.jsonl", 0.6)
    with pytest.raises(LedgerError, match="gives other verdicts"):
        build(run.job, run.home)
    assert len(parts_of(run)) == 1
    assert sum(provider_server.books()["billed"].values()) == 5


@pytest.mark.parametrize("left", [0.0, 0.3, 0.7], ids=["empty", "a third", "two thirds"])
def test_a_ledger_that_was_cut_short_is_named_and_left_alone(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, left: float
) -> None:
    run, _ = run_job(make_job(SHORT), tmp_path / "home")
    home = damaged_home(run, tmp_path)
    cut(home / "ledger.db", left)
    before = (home / "ledger.db").read_bytes()
    with pytest.raises(LedgerError, match=r"ledger\.db .*restore it from a backup"):
        build(run.job, home)
    assert (home / "ledger.db").read_bytes() == before
    assert sum(provider_server.books()["billed"].values()) == 5


def damaged_home(run: Run, tmp_path: Path) -> Path:
    """A copy of a home whose ledger is one file, and open in no process."""
    run.ledger.close()
    assert not (run.home / "ledger.db-wal").exists()
    return Path(shutil.copytree(run.home, tmp_path / "damaged"))


def test_a_ledger_that_is_gone_or_older_than_the_results_is_noticed(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    run, _ = run_job(make_job(SHORT), tmp_path / "home")
    home = damaged_home(run, tmp_path)
    (home / "ledger.db").unlink()
    with pytest.raises(LedgerError, match=r"is gone or empty, and .*texts was sent by it"):
        build(run.job, home)
    run_job(make_job(SHORT, name="other"), tmp_path / "older")
    Ledger.of(tmp_path / "older").close()
    shutil.copy(tmp_path / "older/ledger.db", home)
    with pytest.raises(LedgerError, match="was sent by another ledger than this one"):
        build(run.job, home)
    assert len(provider_server.books()["batches"]) == 4  # of two jobs, each with a second round


def test_a_request_file_that_was_cut_after_it_was_sent_is_noticed_before_its_answers_are_read(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 1})
    run = build(make_job(SHORT), tmp_path / "home")
    path = next(run.folder.requests.iterdir())
    whole = path.read_bytes()
    advance(run, patience=0)
    cut(path, 0.5)
    with pytest.raises(LedgerError, match=r"0001-0000\.jsonl is missing or not as it was planned \(and what was sent"):
        finish(run)
    path.write_bytes(whole)
    assert finish(run).statuses == SHORT_STATUSES
    assert sum(provider_server.books()["billed"].values()) == 5
