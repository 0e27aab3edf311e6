"""Histories by seed: replayed, told, cut; and that the oracles see what they are for."""

from __future__ import annotations

import pytest

from simulation.__main__ import outcome_of, run_seeds, shrunk
from simulation.history import history_of, told

FAILED_ONCE = [1_044_743_666_550, 1_044_743_666_613, 1_044_743_666_717, 483_272_371_518]
"""Seeds that broke a promise; each stays here once it is mended."""


def test_no_promise_is_broken() -> None:
    outcome = run_seeds([*FAILED_ONCE, *range(12)])
    assert outcome.broken == ()
    assert outcome.virtual_seconds > 12 * 3600


def test_a_seed_is_always_the_same_history() -> None:
    assert told(history_of(7)) == told(history_of(7)) != told(history_of(8))


def test_what_is_paid_twice_is_found_told_and_cut_to_its_shortest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the look for a batch whose reply was lost, it is created anew."""
    monkeypatch.setattr("tasks.submit.listed_batches", lambda *_: [])
    monkeypatch.setattr("tasks.wait.listed_batches", lambda *_: [])
    broken = [seed for seed in range(12) if outcome_of(history_of(seed))[1] is not None]
    assert broken
    history = history_of(broken[0])
    short = shrunk(history)
    assert len(short.steps) < len(history.steps)
    assert outcome_of(short)[1] is not None
