"""Every benchmark runs to its end on a few rows: none breaks unseen. What it measures is looked at elsewhere."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT


@pytest.mark.parametrize(
    "command",
    [
        "stages --rows 40 --rounds 1",
        "order --rows 40 --parts 3",
        "endpoint --only instant --lines 20 --large 40",
        "endpoint --only embedded --rows 2",
        "endpoint_soak --lines 40 --batches 2 --kills 1",
        "soak --kills 1",
        "scale --rows 40 --large 0 --nights 2",
        "start --rounds 1 --rows 60",
    ],
)
def test_a_benchmark_runs_to_its_end(command: str) -> None:
    name, *options = command.split()
    whole = [sys.executable, "-m", f"tests.benchmarks.{name}", *options]
    done = subprocess.run(whole, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
