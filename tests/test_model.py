"""The submit protocol, model-checked: two processes that are killed, stopped and raced between any two of their effects."""

from __future__ import annotations

import os

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from simulation.provider import NO_FILE, QUEUE_FULL, NamelessProvider, Plan
from simulation.world import World

LAGS = st.sampled_from([0, 20, 140])
"""Of a listing; the profile waits 180 seconds, of which a create call may use 30 before it is sent."""
PLANS = st.builds(
    Plan, reply=st.sampled_from(["ok", "ok", "lost", "lost", "nothing", "full", "no_file"]), lag=LAGS,
    end=st.sampled_from(["completed", "completed", "expired", "cancelled"]), answered=st.integers(0, 2),
    drop=st.integers(-4, 1), failing=st.integers(-4, 1),
) | st.builds(Plan, end=st.just("failed"), errors=st.sampled_from([(QUEUE_FULL,), (NO_FILE,)]), lag=LAGS)  # fmt: skip
STEPS = st.sampled_from(["submit", "submit", "rescue", "look", "collect", "build"])
OTHERS = st.lists(STEPS, max_size=4) | st.just(["submit"] * 4)
JUMPS = st.sampled_from([5, 25, 65, 200])
EVIDENCE = st.sampled_from(["both", "metadata", "file", "results"])
"""By what a batch is known again: metadata and input file (OpenAI), one of them (Mistral, Gemini; some that speak its
language), or its results alone (Anthropic)."""
TROUBLE = st.sampled_from(["upload", "list", "retrieve", "missing", "download", "answer", "busy"])


class SubmitProtocol(RuleBasedStateMachine):
    """Whatever is interleaved, it ends with every row answered for and nothing paid that was not owed."""

    @initialize(
        evidence=EVIDENCE, plans=st.lists(PLANS, min_size=4, max_size=9), finish_by=st.sampled_from([None, "20h"])
    )
    def start(self, evidence: str, plans: list[Plan], finish_by: str | None) -> None:
        self.world = World(evidence, plans, finish_by=finish_by)

    @rule(kind=TROUBLE, times=st.integers(1, 3))
    def calls_will_fail(self, kind: str, times: int) -> None:
        self.world.fail(kind, times)

    @rule(process=st.integers(0, 1), kind=STEPS, kill_at=st.none() | st.integers(0, 24))
    def a_process_takes_a_step(self, process: int, kind: str, kill_at: int | None) -> None:
        self.world.take_step(process, kind, kill_at)

    @rule(process=st.integers(0, 1), kind=STEPS, at=st.integers(0, 6), seconds=JUMPS, others=OTHERS)
    def a_process_is_stopped_in_a_step(self, process: int, kind: str, at: int, seconds: int, others: list[str]) -> None:
        self.world.stop_in_step(process, kind, at, seconds, others)

    @rule(seconds=JUMPS | st.sampled_from([19 * 3600, 27 * 3600, 30 * 3600]))
    def time_passes(self, seconds: int) -> None:
        self.world.let_pass(seconds)

    @rule(only=st.none() | st.integers(0, 2))
    def the_provider_works(self, only: int | None) -> None:
        self.world.work(only)

    @precondition(lambda self: isinstance(self.world.provider, NamelessProvider))
    @rule(requests=st.integers(1, 2), lag=LAGS)
    def another_program_makes_a_batch_of_our_size(self, requests: int, lag: int) -> None:
        self.world.strangers_batch(requests, lag)

    @precondition(lambda self: self.world.provider.made)
    @rule(which=st.integers(0, 5))
    def a_person_cancels_a_batch(self, which: int) -> None:
        self.world.cancel_batch(which)

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        try:
            self.world.end()
        finally:
            self.world.close()


TestSubmitProtocol = SubmitProtocol.TestCase
PHASES = [Phase.generate] if os.environ.get("OVERNIGHT_NO_SHRINK") else [Phase.generate, Phase.shrink]
"""`tests/mutants.py` wants to know that an example fails, not the smallest one, which may take minutes to find."""
TestSubmitProtocol.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, phases=PHASES
)
