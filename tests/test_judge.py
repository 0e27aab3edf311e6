"""The judge of a batch's end: what is known of it, and what is to be done."""

from __future__ import annotations

import pytest

from overnight.answers.judge import LOST, FilesFound, History, Step, judge_end, recorded_end
from overnight.ledger.records import Batch
from overnight.ledger.states import State
from overnight.providers.replies import RemoteBatch, RemoteError

LATE = History(1000.0, deadline_at=900.0)
QUEUE = RemoteError("token_limit_exceeded", "Enqueued token limit reached", None)
NO_FILE = RemoteError("invalid_file", "Cannot find file file-1", None)
NO_MONEY = RemoteError("billing_hard_limit_reached", "no money", None)
BAD_LINE = RemoteError("invalid_json_line", "not JSON", 3)


def remote(status: str, *errors: RemoteError, output: str | None = None, done: int | None = None) -> RemoteBatch:
    return RemoteBatch("b", status, output_file_id=output, done=done, errors=errors)


@pytest.mark.parametrize(
    ("batch", "files", "history", "step"),
    [
        pytest.param(remote("in_progress"), None, History(0.0), Step.WAIT, id="it goes on"),
        pytest.param(remote("a new word"), None, History(0.0), Step.WAIT, id="a status that nobody knows is no end"),
        pytest.param(None, None, History(0.0), Step.WAIT, id="one 404"),
        pytest.param(None, None, History(0.0, misses=1), Step.WAIT, id="two 404s in a row"),
        pytest.param(None, None, History(0.0, misses=2), Step.GIVE_UP, id="three 404s in a row"),
        pytest.param(remote("in_progress"), None, LATE, Step.CANCEL, id="late"),
        pytest.param(remote("cancelling"), None, LATE, Step.WAIT, id="late, and it is being cancelled"),
        pytest.param(remote("in_progress"), None, LATE._replace(cancelled_by_us=True), Step.CANCEL, id="cancelled again"),
        pytest.param(remote("cancelling"), None, LATE._replace(cancelled_by_us=True, now=4501.0), Step.GIVE_UP,
                     id="cancelled, and it does not end for an hour"),
        pytest.param(remote("completed", output="f"), None, History(0.0), Step.COLLECT, id="completed"),
        pytest.param(remote("completed"), None, History(0.0), Step.COLLECT, id="completed, no file named"),
        pytest.param(remote("expired", output="f"), None, LATE, Step.COLLECT, id="expired with paid answers"),
        pytest.param(remote("cancelled", done=3), None, LATE, Step.COLLECT, id="cancelled with paid answers"),
        pytest.param(remote("failed", QUEUE), None, History(0.0), Step.WAIT_FOR_QUEUE, id="failed at a full queue"),
        pytest.param(remote("failed", QUEUE, output="f"), None, History(0.0), Step.COLLECT,
                     id="failed at a full queue, with an output file"),
        pytest.param(remote("failed", NO_FILE), None, History(0.0), Step.WAIT_FOR_FILE, id="its file is not there yet"),
        pytest.param(remote("failed", NO_FILE), None, History(0.0, refusals=6), Step.COLLECT,
                     id="its file is not there at all"),
        pytest.param(remote("failed", NO_MONEY), None, History(0.0), Step.STOP, id="the account cannot pay"),
        pytest.param(remote("failed", BAD_LINE), None, History(0.0), Step.COLLECT, id="a line failed validation"),
        pytest.param(remote("completed"), FilesFound(any_line=True), History(0.0), Step.COLLECT, id="files with lines"),
        pytest.param(remote("failed", QUEUE), FilesFound(any_line=True), History(0.0), Step.COLLECT,
                     id="failed at a full queue, and lines came"),
        pytest.param(remote("failed", QUEUE), FilesFound(any_line=False), History(0.0), Step.WAIT_FOR_QUEUE,
                     id="failed at a full queue, and no line came"),
        pytest.param(remote("completed"), FilesFound(any_line=True, output_gone=True), History(0.0), Step.GIVE_UP,
                     id="the output file is gone"),
    ],
)  # fmt: skip
def test_the_judge_names_the_next_step(
    batch: RemoteBatch | None, files: FilesFound | None, history: History, step: Step
) -> None:
    assert judge_end(batch, files, history).step is step


def test_a_batch_that_was_given_up_stays_given_up_when_its_files_are_looked_at() -> None:
    given_up = Batch(1, 1, "t", State.ENDED, 0.0, status=LOST)
    assert judge_end(recorded_end(given_up), FilesFound(any_line=False), History(0.0)).step is Step.GIVE_UP


def test_an_end_is_judged_the_same_from_the_ledger_as_from_the_providers_words() -> None:
    errors = [list(QUEUE), list(BAD_LINE)]
    kept = recorded_end(Batch(1, 1, "t", State.ENDED, 0.0, batch_id="b", status="failed", errors=errors))
    assert kept == remote("failed", QUEUE, BAD_LINE)
