"""Runs a job in child processes that are killed again and again, until one gets to the end.

    python -m tests.crash_driver JOB.json HOME WHEN

WHEN is `after` (children are killed in turns right after their first, second and third step of the ledger), `before` (right
before it: what they did since the last, such as a paid call, is not written down), `put` (the store of the home kills them at
their first put, right before it and right after it, then at their second, up to the eighth, and so on), or a seed (each child is killed
after a random time), or `never`. A child is killed with SIGKILL: nothing of it gets to clean up. Prints one JSON object: kills, and rows by status.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.pool import Pool

from overnight.store.home import JobFolder, home_path
from overnight.store.objects import is_there
from overnight.store.parquet import read_batches
from tests.object_store import order_faults
from tests.steps import build, finish

_MOST_CHILDREN = 400
_LONGEST_LIFE = 0.6
_STEPS = ("INSERT INTO batches", "UPDATE batches")
_BUILD = "INSERT INTO jobs"


def kill_at_step(number: int, *, before: bool) -> None:
    """Has this process killed at its n-th transaction that changes a batch; the build, which each makes, is none."""
    steps = 0
    statements: list[str] = []

    def is_step() -> bool:
        building = any(statement.startswith(_BUILD) for statement in statements)
        return not building and any(statement.startswith(_STEPS) for statement in statements)

    def execute(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    def commit(_connection: Any) -> None:
        nonlocal steps
        steps += is_step()
        if before and is_step() and steps == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def checkin(*_: Any) -> None:
        if not before and is_step() and steps == number:
            os.kill(os.getpid(), signal.SIGKILL)
        statements.clear()

    sa.event.listen(sa.Engine, "before_cursor_execute", execute)
    sa.event.listen(sa.Engine, "commit", commit)
    sa.event.listen(Pool, "checkin", checkin)


def run_once(job: dict[str, Any], home: str) -> None:
    """The child: builds and finishes the job, unless it is killed."""
    finish(build(job, home), steps=500)


def main(job_file: str, home: str, when: str) -> None:
    """Forks children until one ends by itself."""
    job = json.loads(Path(job_file).read_text())
    chance = random.Random(when)
    for kills in range(_MOST_CHILDREN):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(tell)
            os.read(told, 1)  # nothing until the store knows whom to kill
            if when in ("after", "before"):  # in turns: one that never lives to make the paid call would never end
                kill_at_step(1 + kills % 3, before=when == "before")
            run_once(job, home)
            os._exit(0)
        if when == "put":
            do = "kill after" if kills % 2 else "kill before"
            order_faults({"method": "PUT", "skip": kills // 2 % 8, "do": do, "pid": child})
        os.close(told)
        os.close(tell)
        if when.isdigit():
            time.sleep(chance.uniform(0, _LONGEST_LIFE * (1 + kills / 10)))  # a slow machine gets on too
            os.kill(child, signal.SIGKILL)  # one that has ended already is a zombie, and does not mind
        _, status = os.waitpid(child, 0)
        if not os.WIFSIGNALED(status):
            if os.WEXITSTATUS(status):
                sys.exit(f"a child failed after {kills} kills")
            print(json.dumps({"kills": kills, "statuses": statuses(job, home)}))  # noqa: T201 - read by the test
            return
    sys.exit("the job does not end")


def statuses(job: dict[str, Any], home: str) -> dict[str, int]:
    """Rows of the joined table by status."""
    found: dict[str, int] = {}
    joined = JobFolder(home_path(home), job["name"]).joined
    for batch in read_batches(joined, ["status"]) if is_there(joined) else ():
        for status in batch["status"].to_pylist():
            found[status] = found.get(status, 0) + 1
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
