"""How flow runs end: in words on the page, as the exception for who called, and without frames of anybody's."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest
from prefect.client.schemas.objects import State
from prefect.exceptions import CancelledRun
from prefect.states import Cancelled

from flows.names import held_job
from flows.notebook import bar, in_notebook
from flows.pipeline import Pipeline, job_flow
from flows.run import run_batch, run_batch_async
from flows.states import WithoutFrames
from overnight.errors import DatasetError, JobError, Problem
from overnight.ledger.run import open_run
from overnight.reports.status import JobStatus
from tests.conftest import MakeJob


def test_a_run_that_cannot_go_on_fails_with_the_message_alone(
    prefect_server: None, make_job: MakeJob, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    job = make_job(["a"], dataset={"path": str(tmp_path / "nothing.csv")})
    logging.getLogger("prefect").addHandler(caplog.handler)
    state = run_batch(job, return_state=True)
    logging.getLogger("prefect").removeHandler(caplog.handler)
    assert state.name == "Failed"
    assert (state.message or "").startswith("there is no dataset at")
    with pytest.raises(DatasetError, match="there is no dataset"):
        state.result()
    assert "there is no dataset" in caplog.text
    assert "Traceback" not in caplog.text


def test_ctrl_c_is_a_cancellation_on_the_page_and_for_the_caller(prefect_server: None) -> None:
    @job_flow("interrupted")
    def interrupted(job: str) -> None:
        raise KeyboardInterrupt

    state = interrupted("x", return_state=True)
    assert (state.name, "Ctrl-C" in (state.message or "")) == ("Cancelled", True)
    with pytest.raises(CancelledRun, match="Ctrl-C"):
        interrupted("x")


@pytest.mark.parametrize("stopped_by", ["Ctrl-C", "the page"])
def test_only_who_cancels_on_the_page_a_run_that_held_the_job_means_its_batches(
    prefect_server: None, make_job: MakeJob, tmp_path: Any, stopped_by: str
) -> None:
    run = open_run(make_job(["a"]), home=str(tmp_path / "home"))

    @job_flow("cancelled")
    def cancelled(job: str) -> State | None:
        with Pipeline(run) as pipeline:
            pipeline.prepare(approve=True)
            if stopped_by == "Ctrl-C":
                raise KeyboardInterrupt
            return Cancelled(message="on the page")

    state = cancelled("texts", return_state=True)
    run_id = str(state.state_details.flow_run_id)
    assert held_job(run_id, "texts") is (stopped_by == "the page")
    assert not held_job(run_id, "another")


def test_a_running_loop_goes_on_while_a_job_is_awaited(prefect_server: None, make_job: MakeJob, tmp_path: Any) -> None:
    async def both() -> tuple[int, int]:
        ticks = 0
        awaited = asyncio.ensure_future(run_batch_async(make_job(["a", "b"]), home=str(tmp_path / "home")))
        while not awaited.done():
            ticks += 1
            await asyncio.sleep(0.01)
        return (await awaited).succeeded, ticks

    succeeded, ticks = asyncio.run(both())
    assert succeeded == 2
    assert ticks > 1


def test_a_notebook_shows_an_error_as_its_message() -> None:
    error = JobError("two things are wrong:", [Problem("job", "no model"), Problem("task", "no prompt")])
    assert error._render_traceback_() == ["JobError: two things are wrong:\n  - job: no model\n  - task: no prompt"]


def test_a_notebook_shows_one_bar_and_whatever_a_job_is_named_is_text() -> None:
    now = JobStatus("<b>", requests=10, answered=4, open_batches=1, unsent=0, done=False)
    assert not in_notebook()
    assert '<progress value="4" max="10">' in bar("<b>", now)
    assert "&lt;b&gt;</b>: 4 of 10 requests answered, 1 open batch" in bar("<b>", now)


def test_other_errors_keep_their_frames() -> None:
    for error, kept in ((ValueError("x"), True), (JobError("y"), False)):
        record = logging.LogRecord("n", logging.ERROR, "p", 1, "said %r", (error,), (type(error), error, None))
        assert WithoutFrames().filter(record)
        assert (record.exc_info is not None, record.getMessage() == str(error)) == (kept, not kept)
