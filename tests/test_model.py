"""The submit protocol, model-checked: two processes that are killed, stopped and raced between any two of their effects.

The ledger, the steps and the files are the real ones; the provider is `tests/model_provider.py`. All of a job's times
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
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from overnight.answers.trouble import is_stuck, troubled
from overnight.builds.staging import stage
from overnight.errors import OvernightError
from overnight.ledger.lease import LEASE_SECONDS
from overnight.ledger.run import Run, open_run
from overnight.limits.queue import ended_batches
from tasks.fetch import fetch
from tasks.join import join
from tasks.parse import parse_batch
from tasks.submit import admit, submit
from tasks.validate import plan_staged
from tasks.wait import poll_all
from tests.model_provider import NO_FILE, QUEUE_FULL, ModelProvider, NamelessProvider, Plan

ROWS = 6
FAST = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
"""Where the ledgers go, which sync each of their transactions."""
OWNERS = ("elsewhere:1:a", "elsewhere:2:b")
TIMES = {"leases": ["until"], "shards": ["hold_until"], "learned_limits": ["at"],
         "batches": ["started_at", "creating_at", "submitted_at", "deadline_at", "ended_at", "trouble_since",
                     "absent_since", "look_at"]}  # fmt: skip
LAGS = st.sampled_from([0, 20, 140])
"""Of a listing; the profile waits 180 seconds, of which a create call may use 30 before it is sent."""
PLANS = st.builds(
    Plan, reply=st.sampled_from(["ok", "ok", "lost", "lost", "nothing", "full", "no_file"]), lag=LAGS,
    end=st.sampled_from(["completed", "completed", "expired", "cancelled"]), answered=st.integers(0, 2),
    drop=st.integers(-4, 1), failing=st.integers(-4, 1),
) | st.builds(Plan, end=st.just("failed"), errors=st.sampled_from([(QUEUE_FULL,), (NO_FILE,)]), lag=LAGS)  # fmt: skip
STEPS = st.sampled_from(["submit", "submit", "look", "collect", "build"])
OTHERS = st.lists(STEPS, max_size=4) | st.just(["submit"] * 4)
JUMPS = st.sampled_from([5, 25, 65, 200])
EVIDENCE = st.sampled_from(["both", "metadata", "file", "results"])
"""By what a batch is known again: metadata and input file (OpenAI), one of them (Mistral, Gemini; some that speak its
language), or its results alone (Anthropic)."""
MAY_BE_ASKED_AGAIN = ("retryable", "expired", "missing")


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


class SubmitProtocol(RuleBasedStateMachine):
    """Whatever is interleaved, it ends with every row answered for and nothing paid that was not owed."""

    @initialize(evidence=EVIDENCE, plans=st.lists(PLANS, min_size=4, max_size=9))
    def start(self, evidence: str, plans: list[Plan]) -> None:
        self.folder = Path(tempfile.mkdtemp(dir=FAST))
        rows = self.folder / "rows.jsonl"
        rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(ROWS)))
        job = {"name": "model", "dataset": {"path": str(rows)}, "model": "m",
               "task": {"kind": "generate", "prompt": "{{ text }}"},
               "provider": {"profile": "custom", "base_url": "http://127.0.0.1:1/v1"},
               "limits": {"max_requests": 2, "poll_seconds": 10}}  # fmt: skip
        self.run: Run = open_run(job, home=str(self.folder / "home"))
        self.seams = Seams()
        kind = NamelessProvider if evidence == "results" else ModelProvider
        self.provider = kind(self.run.job.profile, self.seams.call, evidence)
        self.provider.plans = plans
        self.engine = self.run.ledger._engine
        plan_staged(self.run, stage(self.run))
        for event in ("begin", "commit"):
            sa.event.listen(self.engine, event, self.seams.transaction)

    @rule(kind=st.sampled_from(["upload", "list", "retrieve", "missing", "download"]), times=st.integers(1, 3))
    def calls_will_fail(self, kind: str, times: int) -> None:
        self.provider.trouble[kind] += times

    @rule(process=st.integers(0, 1), kind=STEPS, kill_at=st.none() | st.integers(0, 24))
    def a_process_takes_a_step(self, process: int, kind: str, kill_at: int | None) -> None:
        self.seams.reset(kill_at)
        self._step(process, kind)

    @rule(process=st.integers(0, 1), kind=STEPS, at=st.integers(0, 6), seconds=JUMPS, others=OTHERS)
    def a_process_is_stopped_in_a_step(self, process: int, kind: str, at: int, seconds: int, others: list[str]) -> None:
        def meanwhile() -> None:
            for other in others:
                self._pass(seconds)
                self._step(1 - process, other)

        self.seams.reset(stop_at=at)
        self.seams.stopped = meanwhile
        self._step(process, kind)

    @rule(seconds=JUMPS | st.sampled_from([27 * 3600, 30 * 3600]))
    def time_passes(self, seconds: int) -> None:
        self._pass(seconds)

    @rule(only=st.none() | st.integers(0, 2))
    def the_provider_works(self, only: int | None) -> None:
        self.provider.work(only=only)

    @precondition(lambda self: isinstance(self.provider, NamelessProvider))
    @rule(requests=st.integers(1, 2), lag=LAGS)
    def another_program_makes_a_batch_of_our_size(self, requests: int, lag: int) -> None:
        number = len(self.provider.made)
        self.provider.make("", {}, Plan(lag=lag), [f"theirs-{number}-{one}" for one in range(requests)])

    @precondition(lambda self: self.provider.made)
    @rule(which=st.integers(0, 5))
    def a_person_cancels_a_batch(self, which: int) -> None:
        self.seams.reset()
        self.provider.cancel(list(self.provider.made)[which % len(self.provider.made)])

    def teardown(self) -> None:
        if not hasattr(self, "engine"):
            return
        try:
            self._finish()
            self._check()
        finally:
            self.run.ledger.close()
            shutil.rmtree(self.folder)

    def _pass(self, seconds: float) -> None:
        self.provider.skew += seconds
        with sqlite3.connect(self.run.home / "ledger.db") as database:
            for table, columns in TIMES.items():
                database.execute(f"UPDATE {table} SET " + ", ".join(f"{one} = {one} - {seconds}" for one in columns))
        database.close()

    @contextmanager
    def _leased(self, process: int) -> Iterator[str | None]:
        ledger, owner, now = self.run.ledger, OWNERS[process], time.time()
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
            self._pass(LEASE_SECONDS + 5)  # less than listings lag
            self._step(0, "build")
            rounds = 0
            while not self._is_over():
                for kind in ("submit", "look", "collect"):
                    self._step(0, kind)
                    self.provider.work()
                self._pass(LEASE_SECONDS + 5)
                rounds += 1
                assert rounds < 60, "the job does not end"

    def _is_over(self) -> bool:
        """Whether everything is settled, or waits for a batch whose end contradicts itself: it has no file at all."""
        shards = self.run.ledger.shards("model")
        return all(shard.settled for shard in shards) or is_stuck(shards, time.time())

    def _check(self) -> None:
        tally = join(self.run)
        assert tally.rows == sum(tally.statuses.values()) == ROWS
        parts = [pd.read_parquet(path) for path in sorted(self.run.folder.results.glob("*.parquet"))]
        attempts = pd.concat(parts) if parts else pd.DataFrame(columns=["custom_id", "batch_id", "verdict"])
        joined = pd.read_parquet(self.run.folder.joined).set_index("custom_id")["status"]
        lost = {batch.batch_id for shard in self.run.ledger.shards("model") for batch in shard.batches
                if batch.status == "lost"}  # fmt: skip
        awaited = {batch.batch_id for _, batch in troubled(self.run.ledger.shards("model"))}
        for custom_id, status in joined.items():
            mine = attempts[attempts["custom_id"] == custom_id]
            billed = self.provider.billed.get(str(custom_id), [])
            assert len(set(billed)) == len(billed)
            assert set(billed) - awaited <= set(mine["batch_id"]), (
                f"{custom_id} was billed by a batch that nobody collected"
            )
            for verdict, code in zip(mine["verdict"][:-1], mine["error_code"][:-1], strict=True):
                assert verdict in MAY_BE_ASKED_AGAIN, f"{custom_id} was sent again after {verdict}"
                assert code != "batch_lost", f"{custom_id} was sent again though its batch may have been paid"
            answered = [m.id for m in self.provider.made.values() if custom_id in m.delivered and m.id not in lost]
            assert not answered or status == "succeeded", f"the paid answer to {custom_id} is lost"
        for shard in self.run.ledger.shards("model"):
            for batch in shard.batches:
                assert batch.verdicts is None or sum(batch.verdicts.values()) == shard.requests


TestSubmitProtocol = SubmitProtocol.TestCase
PHASES = [Phase.generate] if os.environ.get("OVERNIGHT_NO_SHRINK") else [Phase.generate, Phase.shrink]
"""`tests/mutants.py` wants to know that an example fails, not the smallest one, which may take minutes to find."""
TestSubmitProtocol.settings = settings(
    max_examples=100, stateful_step_count=30, deadline=None, derandomize=True, phases=PHASES
)
