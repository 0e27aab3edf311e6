"""A job's whole life in one process: the real ledger, steps and files; a provider with hidden books; time that jumps.

Two processes take steps, and may be killed, stopped or raced between any two of their effects. All of a job's times
stand in its ledger, so time passes by moving them back.
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import sqlalchemy as sa

from overnight.answers.trouble import is_stuck, troubled
from overnight.answers.verdicts import MAYBE_PAID
from overnight.builds.staging import stage
from overnight.errors import OvernightError
from overnight.ledger.lease import LEASE_SECONDS
from overnight.ledger.records import Shard
from overnight.ledger.run import Run, open_run
from overnight.limits.queue import ended_batches
from simulation.provider import ModelProvider, NamelessProvider, Plan
from tasks.fetch import fetch
from tasks.join import join
from tasks.parse import parse_batch
from tasks.rescue import Rescue, admit_to_rescue
from tasks.submit import admit, submit
from tasks.validate import plan_staged
from tasks.wait import poll_all

ROWS = 6
_FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None  # noqa: S108 - a folder of its own is made in it
"""Where the ledgers go, which sync each of their transactions."""
_OWNERS = ("elsewhere:1:a", "elsewhere:2:b")
_TIMES = {
    "leases": ["until"], "shards": ["hold_until"], "learned_limits": ["at"], "jobs": ["built_at"],
    "batches": ["started_at", "creating_at", "submitted_at", "deadline_at", "ended_at", "collected_at", "trouble_since",
                "absent_since", "look_at"],
}  # fmt: skip
_MAY_BE_ASKED_AGAIN = ("retryable", "expired", "missing")


class Killed(BaseException):
    """The process ends here; nothing of it gets to clean up."""


class Seams:
    """Between any two effects of a process: the ledger's transactions and the provider's calls."""

    def __init__(self) -> None:
        self.kill_at: int | None = None
        self.stop_at: int | None = None
        self.stopped: Callable[[], None] = lambda: None
        self.passed = self.calls = 0

    def reset(self, kill_at: int | None = None, stop_at: int | None = None) -> None:
        """Starts a step that may be killed at its n-th seam, or stopped at its n-th of the provider."""
        self.kill_at, self.stop_at, self.passed, self.calls = kill_at, stop_at, 0, 0

    def transaction(self, *_: Any) -> None:
        """Before a transaction begins, and before it is committed."""
        self.passed += 1
        if self.kill_at is not None and self.passed > self.kill_at:
            raise Killed

    def call(self) -> None:
        """Before a call has its effect, and before its reply arrives."""
        self.transaction()
        self.calls += 1
        if self.calls - 1 == self.stop_at:
            saved = (self.kill_at, self.stop_at, self.passed, self.calls)
            self.reset()
            self.stopped()
            self.kill_at, self.stop_at, self.passed, self.calls = saved


class PromiseBroken(AssertionError):
    """What a history came to that may never be."""


def _hold(promise: bool, broken: str) -> None:
    if not promise:
        raise PromiseBroken(broken)


class World:
    """Whatever is interleaved, it ends with every row answered for and nothing paid that was not owed."""

    def __init__(self, evidence: str, plans: list[Plan], *, finish_by: str | None = None) -> None:
        """Builds a job of six rows.

        Args:
            evidence: by what the provider's batches are known again: `both` (metadata and input file), `metadata`,
                `file`, or `results`.
            plans: what becomes of the create calls, in their order.
            finish_by: when what is open goes to real time.
        """
        self.folder = Path(tempfile.mkdtemp(dir=_FAST))
        rows = self.folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(ROWS)))
        limits = {"max_requests": 2, "poll_seconds": 10, "finish_by": finish_by, "rescue_concurrency": 1}
        job = {"name": "model", "dataset": {"path": str(rows)}, "model": "m",
               "task": {"kind": "generate", "prompt": "{{ text }}"},
               "provider": {"profile": "openai" if finish_by else "custom", "base_url": "http://127.0.0.1:1/v1"},
               "limits": limits}  # fmt: skip
        self.run: Run = open_run(job, home=str(self.folder / "home"))
        self.seams = Seams()
        kind = NamelessProvider if evidence == "results" else ModelProvider
        self.provider = kind(self.run.job.profile, self.seams.call, evidence)
        self.provider.plans = plans
        self.engine = self.run.ledger._engine
        plan_staged(self.run, stage(self.run))
        for event in ("begin", "commit"):
            sa.event.listen(self.engine, event, self.seams.transaction)

    def fail(self, kind: str, times: int) -> None:
        """Has the next calls of a kind fail: upload (it arrives), list, retrieve, missing (404), download, answer."""
        self.provider.trouble[kind] += times

    def take_step(self, process: int, kind: str, kill_at: int | None = None) -> None:
        """One step of a process, which may be killed at its n-th effect."""
        self.seams.reset(kill_at)
        self._step(process, kind)

    def stop_in_step(self, process: int, kind: str, at: int, seconds: int, others: list[str]) -> None:
        """One step of a process that is stopped before or after its n-th call, while the other goes on."""

        def meanwhile() -> None:
            for other in others:
                self.let_pass(seconds)
                self._step(1 - process, other)

        self.seams.reset(stop_at=at)
        self.seams.stopped = meanwhile
        self._step(process, kind)

    def work(self, only: int | None = None) -> None:
        """Has the provider end its open batches, or one of them."""
        self.provider.work(only=only)

    def cancel_batch(self, which: int) -> None:
        """A person cancels one of the batches there."""
        self.seams.reset()
        if self.provider.made:
            self.provider.cancel(list(self.provider.made)[which % len(self.provider.made)])

    def strangers_batch(self, requests: int, lag: int) -> None:
        """Another program of the account makes a batch of our size."""
        number = len(self.provider.made)
        self.provider.make("", {}, Plan(lag=lag), [f"theirs-{number}-{one}" for one in range(requests)])

    def end(self) -> None:
        """Runs the job to its end, and checks all that it promises.

        Raises:
            PromiseBroken: says which.
        """
        self._finish()
        self._check()

    def close(self) -> None:
        """Deletes everything."""
        self.run.ledger.close()
        shutil.rmtree(self.folder)

    def let_pass(self, seconds: float) -> None:
        """Lets time pass."""
        self.provider.skew += seconds
        with sqlite3.connect(self.run.home / "ledger.db") as database:
            for table, columns in _TIMES.items():
                moved = ", ".join(f"{one} = {one} - {seconds}" for one in columns)
                database.execute(f"UPDATE {table} SET {moved}")  # noqa: S608 - the names are ours
        database.close()

    @contextmanager
    def _leased(self, process: int) -> Iterator[str | None]:
        ledger, owner, now = self.run.ledger, _OWNERS[process], time.time()
        held = ledger.acquire("model", owner, now, now + LEASE_SECONDS)
        yield owner if held is None else None
        ledger.release("model", owner)  # not where it was killed: then the lease runs out

    def _step(self, process: int, kind: str) -> None:
        """One step of a process; a kill ends it, and what the protocol refuses is another process's."""
        with suppress(Killed, OvernightError):
            if kind == "look":
                poll_all(self.run, self.provider)
                return
            with self._leased(process) as owner:
                if owner is None:
                    return
                with suppress(OvernightError):
                    self._work(kind, owner)

    def _work(self, kind: str, owner: str) -> None:
        if kind == "build":
            plan_staged(self.run, stage(self.run))
        elif kind == "submit":
            for shard in admit(self.run, time.time()):
                with suppress(OvernightError):
                    submit(self.run, self.provider, shard, owner)
        elif kind == "rescue":
            for shard in admit_to_rescue(self.run, time.time()):
                with suppress(OvernightError):
                    Rescue(self.run, self.provider, owner).rescue(shard)
        else:
            for batch in ended_batches(self.run.ledger.shards("model"), time.time()):
                with suppress(OvernightError):
                    parse_batch(self.run, fetch(self.provider, self.run.folder.responses, batch))

    def _finish(self) -> None:
        """No call fails any more, what was planned happens still: one process runs the job to its end, twice.

        Then whatever is left at the provider runs too, and is billed.
        """
        self.seams.reset()
        self.provider.trouble.clear()
        for _ in range(2):
            self.let_pass(LEASE_SECONDS + 5)  # less than listings lag
            self._step(0, "build")
            rounds = 0
            while not self._is_over():
                for kind in ("submit", "rescue", "look", "collect"):
                    self._step(0, kind)
                    self.provider.work()
                self.let_pass(LEASE_SECONDS + 5)
                rounds += 1
                _hold(rounds < 60, "the job does not end")

    def _is_over(self) -> bool:
        """Whether everything is settled, or waits for a batch whose end contradicts itself: it has no file at all."""
        shards = self.run.ledger.shards("model")
        return all(shard.settled for shard in shards) or is_stuck(shards, time.time())

    def _check(self) -> None:
        tally = join(self.run)
        _hold(tally.rows == sum(tally.statuses.values()) == ROWS, "not every row has a status")
        parts = [pd.read_parquet(path) for path in sorted(self.run.folder.results.glob("*.parquet"))]
        attempts = pd.concat(parts) if parts else pd.DataFrame(columns=["custom_id", "batch_id", "verdict"])
        joined = pd.read_parquet(self.run.folder.joined).set_index("custom_id")["status"]
        shards = self.run.ledger.shards("model")
        for custom_id, status in joined.items():
            self._check_request(str(custom_id), str(status), attempts[attempts["custom_id"] == custom_id], shards)
        for shard in shards:
            for batch in shard.batches:
                told = batch.verdicts is None or sum(batch.verdicts.values()) == shard.requests
                _hold(told, f"the verdicts of {batch.batch_id} do not sum to its requests")

    def _check_request(self, custom_id: str, status: str, mine: pd.DataFrame, shards: list[Shard]) -> None:
        lost = {batch.batch_id for shard in shards for batch in shard.batches if batch.status == "lost"}
        awaited = {batch.batch_id for _, batch in troubled(shards)}
        billed = self.provider.billed.get(custom_id, [])
        _hold(len(set(billed)) == len(billed), f"{custom_id} was paid twice: {billed}")
        _hold("asked" not in billed[:-1], f"{custom_id} was paid again after it was asked in real time")
        if "asked" in billed:
            told = status == "succeeded" or mine.iloc[-1]["error_code"] == "reply_lost"
            _hold(told, f"{custom_id} was asked in real time, and is {status}")
        collected = set(billed) - awaited - {"asked"} <= set(mine["batch_id"])
        _hold(collected, f"{custom_id} was billed by a batch that nobody collected")
        for verdict, code in zip(mine["verdict"][:-1], mine["error_code"][:-1], strict=True):
            _hold(verdict in _MAY_BE_ASKED_AGAIN, f"{custom_id} was sent again after {verdict}")
            _hold(code not in MAYBE_PAID, f"{custom_id} was sent again though it may have been paid")
        answered = [one.id for one in self.provider.made.values() if custom_id in one.delivered and one.id not in lost]
        _hold(not answered or status == "succeeded", f"the paid answer to {custom_id} is lost")
