"""Pure work in other processes and on clusters: the same results, whoever dies."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from overnight.errors import JobError, OvernightError
from overnight.store import spread as spreading
from overnight.store.spread import ENOUGH_BYTES, RUNNERS, end_clusters, runner_for, spread
from tests.conftest import ROOT, MakeJob, ProviderProcess
from tests.spreadable import die_elsewhere, die_once, double
from tests.steps import build, finish, run_job

TEXTS: list[str | None] = [*(f"t{n}" for n in range(12)), "t0", "[400]", None]
LIMITS = {"max_requests": 5, "poll_seconds": 0.02}


@pytest.fixture(scope="module", autouse=True)
def clusters() -> Iterator[None]:
    """Ends the clusters that tests start."""
    yield
    end_clusters()


@pytest.mark.parametrize(
    ("told", "items", "size", "where"),
    [
        ("", 5, ENOUGH_BYTES, "processes"),
        ("", 5, ENOUGH_BYTES - 1, "threads"),
        ("", 1, ENOUGH_BYTES, "threads"),
        ("threads", 5, ENOUGH_BYTES, "threads"),
        ("dask", 1, 1, "dask"),
    ],
)
def test_work_goes_to_other_processes_where_it_is_worth_it_or_where_it_is_told_to(
    monkeypatch: pytest.MonkeyPatch, told: str, items: int, size: int, where: str
) -> None:
    monkeypatch.setattr(spreading, "_cores", lambda: 2)
    monkeypatch.setenv("OVERNIGHT_RUNNER", told)
    assert runner_for(items, size) == where
    monkeypatch.setattr(spreading, "_cores", lambda: 1)
    assert runner_for(items, size) == (told or "threads")


def test_an_unknown_runner_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OVERNIGHT_RUNNER", "spark")
    with pytest.raises(JobError, match="OVERNIGHT_RUNNER is threads, processes, dask or ray, not 'spark'"):
        runner_for(2, 1)


@pytest.mark.parametrize("runner", RUNNERS)
def test_results_come_in_order_and_a_refusal_keeps_no_other_from_its_result(runner: str) -> None:
    found = list(spread(double, [1, 2, 3, 4], runner))
    assert [one for one in found if isinstance(one, int)] == [2, 4, 8]
    assert isinstance(found[2], OvernightError)
    assert str(found[2]) == "three"


@pytest.mark.parametrize("runner", ["processes", "dask"])
def test_what_a_worker_that_dies_had_in_hand_is_done_again(runner: str, tmp_path: Path) -> None:
    markers = [tmp_path / name for name in "abc"]
    if runner == "processes":  # that pool is broken then, and all that it had is done here, where nobody may die
        markers[1].touch()
        markers[2].touch()
        first = list(spread(die_elsewhere, [os.getpid()] * 3, runner))
        assert first == [os.getpid()] * 3
        markers[0].touch()
    assert list(spread(die_once, markers, runner)) == ["a", "b", "c"]


def test_a_script_without_a_guard_is_not_run_again_by_the_processes(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from overnight.store.spread import spread\n"
        "from tests.spreadable import double\n"
        "print('began'); print(list(spread(double, [1, 2], 'processes')))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = subprocess.check_output([sys.executable, str(script)], env=environment, cwd=tmp_path, text=True)
    assert printed.splitlines() == ["began", "[2, 4]"]


def test_parsed_by_processes_a_job_comes_to_the_same(
    make_job: MakeJob, provider_server: ProviderProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = make_job(TEXTS, limits=LIMITS)
    _, clean = run_job(job, tmp_path / "clean")
    monkeypatch.setenv("OVERNIGHT_RUNNER", "processes")
    run = build(job, tmp_path / "home")
    assert finish(run, together=True).statuses == {"succeeded": 13, "failed": 2}
    dropped = ["batch_id", "attempts"]
    pd.testing.assert_frame_equal(pd.read_parquet(run.folder.joined).drop(columns=dropped), clean.drop(columns=dropped))
    assert set(provider_server.books()["billed"].values()) == {2}
