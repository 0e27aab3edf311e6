"""A job's steps without Prefect: what the flow does, in milliseconds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from overnight.answers.trouble import is_stuck
from overnight.builds.staging import stage
from overnight.job.profiles import Profile
from overnight.ledger.database import Ledger
from overnight.ledger.lease import leased
from overnight.ledger.run import Run, open_run
from overnight.limits.queue import ended_batches
from overnight.providers.connect import connect
from overnight.providers.provider import Provider
from overnight.reports.summary import Tally
from tasks.fetch import fetch_files
from tasks.join import join
from tasks.parse import parse_answers, parse_batch
from tasks.rescue import admit_to_rescue, rescue_shards
from tasks.submit import admit, submit_shards
from tasks.validate import validate_requests
from tasks.wait import wait
from tests.conftest import ProviderProcess

PATIENCE = 60.0
"""Seconds to wait for another process."""


def provider_of(profile: str, server: ProviderProcess) -> dict[str, Any]:
    address = server.base_url.replace("/v1", "/xai/v1") if profile == "xai" else server.base_url
    return {"profile": profile, "base_url": address, "api_key_env": "OVERNIGHT_KEY_DIALECT"}


def connected(profile: str, server: ProviderProcess, home: Path) -> Provider:
    """A dialect's client, at the test server."""
    server.order(key="secret")
    settings = {name: value for name, value in provider_of(profile, server).items() if name != "profile"}
    return connect(Profile.named(profile).overridden(**settings), home)


def build(job: Any, home: Path | str) -> Run:
    """build → validate."""
    run = open_run(job, home=str(home))
    with leased(run.ledger, run.job.name, PATIENCE):
        validate_requests.fn(run, stage(run))
    return run


def advance(run: Run, patience: float = 0.2, *, together: bool = False) -> None:
    """submit → wait → fetch → parse, once; `together` parses all batches as the flow does, by its runner."""
    with leased(run.ledger, run.job.name, PATIENCE) as owner:
        submit_shards.fn(run, tuple(admit(run, time.time())), owner)
        if due := admit_to_rescue(run, time.time()):
            rescue_shards.fn(run, tuple(due), owner)
    wait(run, patience)
    with leased(run.ledger, run.job.name, PATIENCE):
        ended = ended_batches(run.ledger.shards(run.job.name), time.time())
        if together and ended:
            parse_answers.fn(run, fetch_files.fn(run, tuple(ended)))
            return
        for batch in ended:
            for files in fetch_files.fn(run, (batch,)):
                parse_batch(run, files)


def opened_by_four(url: str) -> list[str]:
    """The identity of a new ledger, as four processes see it that open it at the same moment."""
    code = (
        f"import sys; sys.stdin.read(1); from overnight.ledger.database import Ledger; print(Ledger({url!r}).identity)"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    processes = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(4)]
    outcomes = [process.communicate("x") for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outcomes
    return [out.strip() for out, _ in outcomes]


def without_ledger(job: Any, home: Path) -> Run:
    """A job whose folder outlived its ledger, in a home whose owner has begun another."""
    (there := home.with_name("saved")).mkdir(mode=0o700)
    shutil.move(home / job["name"], there)
    Ledger.of(there, anew=True)
    return open_run(job, home=str(there))


def age(run: Run, seconds: float) -> None:
    """Lets time pass for a job's batches: all their times stand in the ledger."""
    columns = ("started_at", "creating_at", "submitted_at", "deadline_at", "ended_at", "trouble_since", "absent_since",
               "look_at")  # fmt: skip
    with run.ledger._engine.begin() as connection:
        connection.exec_driver_sql("UPDATE batches SET " + ", ".join(f"{one} = {one} - {seconds}" for one in columns))
        connection.exec_driver_sql(f"UPDATE jobs SET built_at = built_at - {seconds}")
        connection.exec_driver_sql(f"UPDATE shards SET hold_until = hold_until - {seconds}")


def finish(run: Run, steps: int = 50, *, together: bool = False) -> Tally:
    """Advances until all requests have their verdict, and joins."""
    for _ in range(steps):
        shards = run.ledger.shards(run.job.name)
        stuck = is_stuck(shards, time.time())
        if all(shard.settled for shard in shards) or stuck:
            with leased(run.ledger, run.job.name, PATIENCE):
                return join(run)
        advance(run, together=together)
    raise AssertionError("the job does not end")


def run_job(job: Any, home: Path | str) -> tuple[Run, pd.DataFrame]:
    """All steps; returns the joined table too."""
    run = build(job, home)
    finish(run)
    return run, pd.read_parquet(run.folder.joined)
