"""The judge of a batch's end: what is known of it, and what is to be done."""

from __future__ import annotations

import pytest

from overnight.answers.judge import LOST, Counts, FilesFound, History, Step, judge_end, recorded_end
from overnight.ledger.records import Batch
from overnight.ledger.states import State
from overnight.providers.replies import RemoteBatch, RemoteError

DAY = 86_400.0
KEPT = History(1000.0, deadline_at=5000.0, kept_until=30 * DAY)
LACKS = KEPT._replace(listing="lacks it")
LATE = KEPT._replace(now=6000.0)
OLD = KEPT._replace(now=31 * DAY)
QUEUE = RemoteError("token_limit_exceeded", "Enqueued token limit reached", None)
NO_FILE = RemoteError("invalid_file", "Cannot find file file-1", None)
NO_MONEY = RemoteError("billing_hard_limit_reached", "no money", None)
BAD_LINE = RemoteError("invalid_json_line", "not JSON", 3)


def remote(
    status: str, *errors: RemoteError, output: str | None = None, error: str | None = None, done: int | None = None
) -> RemoteBatch:
    return RemoteBatch("b", status, output_file_id=output, error_file_id=error, done=done, errors=errors)


def found(lines: int, **gone: bool) -> FilesFound:
    return FilesFound(lines, **gone)


@pytest.mark.parametrize(
    ("batch", "files", "history", "step"),
    [
        pytest.param(remote("in_progress"), None, KEPT, Step.WAIT, id="it goes on"),
        pytest.param(remote("a new word"), None, KEPT, Step.WAIT, id="a status that nobody knows is no end"),
        pytest.param(None, None, KEPT, Step.LIST, id="a 404: the listing is asked"),
        pytest.param(None, None, LACKS._replace(absent_for=0.0), Step.LOOK_AGAIN, id="one listing lacks it"),
        pytest.param(None, None, KEPT._replace(listing="failed", absent_for=DAY), Step.LOOK_AGAIN, id="it cannot be listed now"),
        pytest.param(None, None, KEPT._replace(absent_for=DAY), Step.LIST, id="lacking a day ago is not lacking now"),
        pytest.param(None, None, LACKS._replace(absent_for=599.0), Step.LOOK_AGAIN, id="two listings lack it, too close together"),
        pytest.param(None, None, LACKS._replace(absent_for=600.0), Step.MISS, id="two listings lack it, ten minutes apart"),
        pytest.param(None, None, LACKS._replace(lost=True, absent_for=DAY), Step.LOOK_AGAIN, id="lost, and looked for"),
        pytest.param(None, None, LACKS._replace(lost=True, given_up=True), Step.GIVE_UP, id="lost, and a person gives it up"),
        pytest.param(None, None, OLD._replace(lost=True, listing="failed"), Step.GIVE_UP, id="lost, and its outputs would be deleted by now"),
        pytest.param(remote("in_progress"), None, LATE, Step.CANCEL, id="late"),
        pytest.param(remote("cancelling"), None, LATE, Step.WAIT, id="late, and it is being cancelled"),
        pytest.param(remote("in_progress"), None, LATE._replace(cancelled_by_us=True), Step.CANCEL, id="cancelled again"),
        pytest.param(remote("cancelling"), None, LATE._replace(cancelled_by_us=True, now=8601.0), Step.LOOK_AGAIN,
                     id="cancelled, and it does not end for an hour"),
        pytest.param(remote("completed", output="f"), None, KEPT, Step.COLLECT, id="completed"),
        pytest.param(remote("completed"), None, KEPT, Step.LOOK_AGAIN, id="completed, no file named"),
        pytest.param(remote("completed", done=6), None, KEPT._replace(trouble_for=DAY), Step.LOOK_AGAIN,
                     id="completed with 6 of 6, no file named for a day"),
        pytest.param(remote("completed", done=6), None, OLD, Step.GIVE_UP, id="completed, no file named for a month"),
        pytest.param(remote("completed", done=6, error="e"), None, KEPT, Step.LOOK_AGAIN,
                     id="completed with 6 of 6, only an error file named yet"),
        pytest.param(remote("completed", done=6, error="e"), None, KEPT._replace(trouble_for=3600.0), Step.COLLECT,
                     id="completed, only an error file named for an hour: the answers may stand there"),
        pytest.param(remote("expired", output="f"), None, LATE, Step.COLLECT, id="expired with paid answers"),
        pytest.param(remote("expired"), None, LATE, Step.COLLECT, id="expired with none"),
        pytest.param(remote("expired", done=3), None, LATE, Step.LOOK_AGAIN, id="expired with paid answers, no file named"),
        pytest.param(remote("cancelled", output="f", done=3), None, LATE, Step.COLLECT, id="cancelled with paid answers"),
        pytest.param(remote("failed", QUEUE), None, KEPT, Step.WAIT_FOR_QUEUE, id="failed at a full queue"),
        pytest.param(remote("failed", QUEUE, output="f"), None, KEPT, Step.COLLECT,
                     id="failed at a full queue, with an output file"),
        pytest.param(remote("failed", NO_FILE), None, KEPT, Step.WAIT_FOR_FILE, id="its file is not there yet"),
        pytest.param(remote("failed", NO_FILE), None, KEPT._replace(refusals=6), Step.COLLECT,
                     id="its file is not there at all"),
        pytest.param(remote("failed", NO_MONEY), None, KEPT, Step.STOP, id="the account cannot pay"),
        pytest.param(remote("failed", BAD_LINE), None, KEPT, Step.COLLECT, id="a line failed validation"),
        pytest.param(remote("completed", output="f"), found(6), KEPT, Step.COLLECT, id="files with lines"),
        pytest.param(remote("completed", output="f"), found(0), KEPT, Step.LOOK_AGAIN, id="completed, and its files are empty"),
        pytest.param(remote("failed", QUEUE, output="f"), found(3), KEPT, Step.COLLECT,
                     id="failed at a full queue, and lines came"),
        pytest.param(remote("failed", QUEUE, output="f"), found(0), KEPT, Step.WAIT_FOR_QUEUE,
                     id="failed at a full queue, and no line came"),
        pytest.param(remote("completed", output="f"), found(0, output_gone=True), KEPT, Step.LOOK_AGAIN,
                     id="the output file is not there"),
        pytest.param(remote("completed", output="f"), found(2, output_gone=True), OLD, Step.GIVE_UP,
                     id="the output file is not there, and would be deleted by now"),
        pytest.param(remote("completed", output="f", error="e"), found(5, error_gone=True), KEPT, Step.LOOK_AGAIN,
                     id="the error file is not there, and a line is missing"),
        pytest.param(remote("completed", output="f", error="e"), found(6, error_gone=True), KEPT, Step.COLLECT,
                     id="the error file is not there, and no line is missing"),
        pytest.param(remote("completed", output="f", error="e"), found(5, error_gone=True), KEPT._replace(trouble_for=3600.0),
                     Step.COLLECT, id="the error file is not there for an hour"),
    ],
)  # fmt: skip
def test_the_judge_names_the_next_step(
    batch: RemoteBatch | None, files: FilesFound | None, history: History, step: Step
) -> None:
    counts = Counts(batch.done if batch else None, batch.failed if batch else None, 6)
    assert judge_end(batch, files, counts, history).step is step


def test_a_batch_that_was_given_up_stays_given_up_when_its_files_are_looked_at() -> None:
    given_up = Batch(1, 1, "t", State.ENDED, 0.0, status=LOST)
    assert judge_end(recorded_end(given_up), found(0), Counts(None, None, 6), KEPT).step is Step.GIVE_UP


def test_an_end_is_judged_the_same_from_the_ledger_as_from_the_providers_words() -> None:
    errors = [list(QUEUE), list(BAD_LINE)]
    kept = recorded_end(Batch(1, 1, "t", State.ENDED, 0.0, batch_id="b", status="failed", errors=errors))
    assert kept == remote("failed", QUEUE, BAD_LINE)
