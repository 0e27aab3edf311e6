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


def start(job: dict[str, Any], home: Path, when: str) -> subprocess.Popen[str]:
    """Starts the crash driver."""
    path = home.with_suffix(".json")
    path.write_text(json.dumps(job))
    command = [sys.executable, "-m", "tests.crash_driver", str(path), str(home), when]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def told(driver: subprocess.Popen[str]) -> dict[str, Any]:
    """What the crash driver prints at its end."""
    printed, errors = driver.communicate(timeout=300)
    assert driver.returncode == 0, errors[-3000:]
    outcome: dict[str, Any] = json.loads(printed.splitlines()[-1])
    return outcome


@pytest.mark.parametrize(("when", "kills"), [("after", 12), ("before", 10), ("1", 1), ("2", 1)])
@pytest.mark.parametrize("echo", [True, False], ids=["metadata", "no metadata"])
def test_a_job_that_is_killed_at_every_step_pays_once_and_ends_as_if_it_never_was(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess, when: str, kills: int, echo: bool
) -> None:
    job = make_job(TEXTS, limits={"max_requests": 5, "poll_seconds": 0.01, "lost_reply_seconds": 0.5})
    _, clean = run_job(job, tmp_path / "clean")
    before = provider_server.books()["billed"]
    provider_server.order(echo_metadata=echo, default={"polls": 1})
    outcome = told(start(job, tmp_path / "home", when))
    assert outcome["kills"] >= kills
    assert outcome["statuses"] == EXPECTED
    after = provider_server.books()["billed"]
    # `[500 once]` fails on the clean run's first attempt only: the killed run gets its answer at once.
    assert {after[custom_id] - before[custom_id] for custom_id in after} == {1}
    joined = pd.read_parquet(tmp_path / "home/texts/joined.parquet")
    same = [column for column in clean.columns if column not in ("batch_id", "attempts")]
    pd.testing.assert_frame_equal(joined[same], clean[same])


def test_two_processes_that_run_a_job_at_once_pay_once(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    provider_server.order(default={"polls": 3})
    job = make_job(TEXTS, limits={"max_requests": 2, "poll_seconds": 0.02})
    drivers = [start(job, tmp_path / "home", "never") for _ in range(2)]
    assert [told(driver)["statuses"] for driver in drivers] == [EXPECTED, EXPECTED]
    billed = provider_server.books()["billed"]
    assert sorted(billed.values()) == [*[1] * 13, 2]  # `[500 once]` was owed a second attempt
