"""Killed with SIGKILL between any two steps and run again: no row is lost, and none is paid for twice."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import ROOT, MakeJob, ProviderProcess
from tests.steps import run_job

TEXTS: list[str | None] = [*(f"t{n}" for n in range(12)), "t0", "[500 once]", "[400]", None]
EXPECTED = {"succeeded": 14, "failed": 2}


def crash(job: dict[str, Any], home: Path, when: str) -> dict[str, Any]:
    """Runs the crash driver; returns what it prints."""
    path = home.with_suffix(".json")
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.crash_driver", str(path), str(home), when]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return told


@pytest.mark.parametrize(("when", "kills"), [("after", 20), ("before", 10), ("1", 1), ("2", 1)])
@pytest.mark.parametrize("echo", [True, False], ids=["metadata", "no metadata"])
def test_a_job_that_is_killed_at_every_step_pays_once_and_ends_as_if_it_never_was(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, when: str, kills: int, echo: bool
) -> None:
    job = make_job(TEXTS, limits={"max_requests": 5, "poll_seconds": 0.01, "lost_reply_seconds": 0.5})
    _, clean = run_job(job, tmp_path / "clean")
    before = provider_server.books()["billed"]
    provider_server.order(echo_metadata=echo, default={"polls": 1})
    told = crash(job, tmp_path / "home", when)
    assert told["kills"] >= kills
    assert told["statuses"] == EXPECTED
    after = provider_server.books()["billed"]
    # `[500 once]` fails on the clean run's first attempt only: the killed run gets its answer at once.
    assert {after[custom_id] - before[custom_id] for custom_id in after} == {1}
    joined = pd.read_parquet(tmp_path / "home/texts/joined.parquet")
    same = [column for column in clean.columns if column not in ("batch_id", "attempts")]
    pd.testing.assert_frame_equal(joined[same], clean[same])
