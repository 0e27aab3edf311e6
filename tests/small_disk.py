"""Runs a job in a process whose files may not grow any more from one stage on, as on a full disk.

    python -m tests.small_disk JOB.json HOME STAGE

STAGE is build, ledger, fetch, parse, or join. Needs no rights: the limit is the process's own (RLIMIT_FSIZE).
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

from overnight.errors import OvernightError
from overnight.ledger.lease import leased
from overnight.limits.queue import ended_batches
from tasks.fetch import fetch_files
from tasks.join import join
from tasks.parse import parse_batch
from tasks.submit import admit, submit_shards
from tasks.wait import wait
from tests.steps import build

SMALL = 300_000
"""Bytes: more than the ledger takes, less than any file of the job's."""


def main(job_file: str, home: str, stage: str) -> None:
    """All steps, of which one finds the disk full."""

    def begin(name: str) -> None:
        if name == stage:
            size = 4096 if stage == "ledger" else SMALL
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    begin("build")
    run = build(json.loads(Path(job_file).read_text()), Path(home))
    with leased(run.ledger, run.job.name) as owner:
        begin("ledger")
        submit_shards.fn(run, tuple(admit(run, time.time())), owner)
        wait(run, 10)
        begin("fetch")
        (fetched,) = fetch_files.fn(run, tuple(ended_batches(run.ledger.shards(run.job.name), time.time())))
        begin("parse")
        parse_batch(run, fetched)
        begin("join")
        join(run)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OvernightError as error:
        sys.exit(f"{type(error).__name__}: {error}")
