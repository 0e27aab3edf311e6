"""The flow itself, under Prefect, killed with SIGKILL and run again: it ends as if it never was."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from tests.conftest import ROOT, MakeJob, ProviderProcess
from tests.steps import run_job

KILLS = [("after", 3), ("before", 4), ("after", 1), ("before", 2), ("after", 2)]
"""Steps of the ledger: a batch is submitted in four and collected in two more."""
MOMENTS = 1
TEXTS: list[str | None] = [*(f"t{n}" for n in range(8)), "t0", "[400]", None]


def start(job: Path, home: Path, when: str, step: int) -> subprocess.Popen[str]:
    from prefect import settings  # noqa: PLC0415 - most tests do without Prefect's import

    environment = os.environ | {
        "PREFECT_API_URL": str(settings.PREFECT_API_URL.value()),
        "PREFECT_LOGGING_LEVEL": "ERROR",
    }
    command = [sys.executable, "-m", "tests.flow_driver", str(job), str(home), when, str(step)]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


@pytest.mark.usefixtures("prefect_server")
def test_a_flow_that_is_killed_again_and_again_pays_once_and_joins_all(
    make_job: MakeJob, tmp_path: Path, provider_server: ProviderProcess
) -> None:
    job = make_job(TEXTS, limits={"max_requests": 4, "poll_seconds": 0.02, "lost_reply_seconds": 0.5})
    _, clean = run_job(job, tmp_path / "clean")
    before = provider_server.books()["billed"]
    provider_server.order(default={"polls": 1})
    path, home, chance = tmp_path / "job.json", tmp_path / "home", random.Random(7)
    codes: list[int] = []
    path.write_text(json.dumps(job))
    attempts = [*KILLS, *[("never", 0)] * (MOMENTS + 1)]
    for number, (when, step) in enumerate(attempts, 1):
        child = start(path, home, when, step)
        if when == "never" and number < len(attempts):
            time.sleep(chance.uniform(2, 5))
            child.kill()
        _, errors = child.communicate(timeout=120)
        assert child.returncode in (0, -9), errors[-3000:]
        codes.append(child.returncode)
    assert codes[-1] == 0
    assert codes.count(-9) >= 4, codes
    after = provider_server.books()["billed"]
    assert {after[custom_id] - before[custom_id] for custom_id in after} == {1}
    joined = pd.read_parquet(home / "texts/joined.parquet")
    same = [column for column in clean.columns if column not in ("batch_id", "attempts")]
    pd.testing.assert_frame_equal(joined[same], clean[same])
