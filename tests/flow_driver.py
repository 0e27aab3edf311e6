"""Runs a job as the flow `run_batch`, in a process that kills itself at a step of the ledger.

    python -m tests.flow_driver JOB.json HOME WHEN STEP

WHEN is `before` or `after` the STEP-th transaction that changes a batch, or `never`. It reports to `PREFECT_API_URL`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from flows.run import run_batch
from tests.crash_driver import kill_at_step

if __name__ == "__main__":
    job_file, home, when, step = sys.argv[1:]
    if when != "never":
        kill_at_step(int(step), before=when == "before")
    run_batch(json.loads(Path(job_file).read_text()), home=home)
