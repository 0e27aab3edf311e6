"""The main job as a newcomer runs it: real endpoint, real model, real Parquet."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from tests.conftest import ROOT

REVIEWS = ROOT / "data/samples/reviews.csv"


def environment(folder: Path) -> dict[str, str]:
    names = ("PREFECT_API_URL", "PREFECT_API_KEY")
    kept = {name: value for name, value in os.environ.items() if name not in names}
    homes = {"PREFECT_HOME": str(folder / "prefect"), "OVERNIGHT_HOME": str(folder / "home")}
    return {**kept, **homes, "OVERNIGHT_SERVER_MINUTES": "0.5"}


def overnight(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "flows", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment(folder), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], str]:
    """`overnight try`, once."""
    folder = tmp_path_factory.mktemp("try")
    done = overnight(folder, "try", "--json")
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_every_review_is_answered_in_its_row(tried: tuple[Path, dict[str, Any], str]) -> None:
    _, outcome, _ = tried
    dataset, joined = pd.read_csv(REVIEWS), pd.read_parquet(outcome["joined"])
    pd.testing.assert_frame_equal(joined[dataset.columns.to_list()], dataset, check_dtype=False)
    assert set(joined["status"]) == {"succeeded"}
    assert set(joined["answer"]) == {"positive", "negative"}
    assert joined["custom_id"].is_unique
    assert (joined["input_tokens"] > 20).all()
    assert (joined["model"] == "smollm2-135m-instruct").all()
    assert (joined["answer"] == joined["expected"]).mean() > 0.8


def test_the_outcome_adds_up(tried: tuple[Path, dict[str, Any], str]) -> None:
    _, outcome, shown = tried
    joined = pd.read_parquet(outcome["joined"])
    assert outcome["rows"] == outcome["requests"] == outcome["succeeded"] == len(joined) == 72
    assert outcome["input_tokens"] == joined["input_tokens"].sum()
    assert outcome["output_tokens"] == joined["output_tokens"].sum()
    assert pd.read_parquet(outcome["failed_rows"]).empty
    for part in ("the first answers", "72 of 72 rows answered", "would cost $0.0", "joined.parquet", "report.md"):
        assert part in shown
    report = Path(outcome["joined"]).with_name("report.md").read_text()
    assert "| **all rows** | 72 |" in report
    assert "## Agreement with `expected`" in report
    assert re.search(r"\| negative \| \d+ \| [\d.]+% \| █+ \|", report)


def test_a_second_run_sends_nothing(tried: tuple[Path, dict[str, Any], str]) -> None:
    folder, outcome, _ = tried
    before = pd.read_parquet(outcome["joined"])
    again = overnight(folder, "run", "data/jobs/reviews.yaml", "--json")
    assert json.loads(again.stdout.splitlines()[-1])["batches"] == outcome["batches"]
    assert pd.read_parquet(outcome["joined"]).equals(before)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.05)


_AT_A_TERMINAL = """
import signal
from flows.__main__ import main
signal.signal(signal.SIGINT, signal.default_int_handler)
main()
"""
"""What a shell starts in the background, as it may start these tests, does not hear Ctrl-C."""


def test_ctrl_c_stops_cleanly_and_the_next_run_goes_on(tmp_path: Path) -> None:
    command = [sys.executable, "-c", _AT_A_TERMINAL, "run", "data/jobs/reviews.yaml", "--json"]
    pipe = subprocess.PIPE
    run = subprocess.Popen(command, cwd=ROOT, env=environment(tmp_path), stdout=pipe, stderr=pipe, text=True)
    wait_for(tmp_path / "home/reviews/requests/*.jsonl", run)
    run.send_signal(signal.SIGINT)
    _, shown = run.communicate(timeout=60)
    assert run.returncode == 130, shown
    assert "run the same command again to go on" in " ".join(shown.split())
    assert not (tmp_path / "home/.endpoint/endpoint.json").exists()
    done = overnight(tmp_path, "run", "data/jobs/reviews.yaml", "--json")
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert (outcome["succeeded"], outcome["batches"]) == (72, 1)


@pytest.mark.parametrize("path", sorted((ROOT / "data/jobs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_job_file_reads_and_says_what_it_shows(path: Path) -> None:
    from overnight.job.jobfile import load_job  # noqa: PLC0415 - the other tests here run it as a program

    assert path.read_text().startswith("# ")
    assert load_job(path).name == yaml.safe_load(path.read_text())["name"]
