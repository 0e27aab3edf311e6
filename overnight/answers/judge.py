"""The one judge of how a batch ended, and of what that means for its requests. Pure: facts in, the next step out.

`wait` asks with what the provider says of a batch, `parse` once more with the files that came. Nobody else decides
whether a batch is over, late, lost, or turned away as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import NamedTuple

from overnight.answers.verdicts import Reply, Verdict, failure_verdict
from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.providers.replies import TERMINAL, RemoteBatch, RemoteError

LOST = "lost"
"""The status that the ledger gives to a batch that was given up; no provider says it."""
_MOST_MISSES = 3
"""Looks in a row at which the provider does not know a batch: one or two 404s pass (new-api#4385)."""
_MOST_REFUSALS = 6
"""How often a shard goes out again whose file the provider does not find: it showed up within minutes
(openai-dotnet#312), and what is not there after that is no delay."""
_CANCEL_SECONDS = 3600.0
"""How long after its deadline a cancelled batch may take to end: OpenAI says ten minutes, hours were seen."""


class Step(StrEnum):
    """What is to be done about a batch."""

    WAIT = "wait"
    """It goes on: look again."""
    CANCEL = "cancel"
    """It is past its deadline: have it cancelled, and look again."""
    COLLECT = "collect"
    """It is over: its files are read, and its requests are judged one by one."""
    GIVE_UP = "give up"
    """It is lost: what it held may have been paid."""
    WAIT_FOR_QUEUE = "wait for the queue"
    """It was turned away as a whole, since the account's queue was full: the shard goes out again later."""
    WAIT_FOR_FILE = "wait for the file"
    """It was turned away as a whole, since its file was not there yet: the shard goes out again in a moment."""
    STOP = "stop"
    """It was turned away for a reason that every other batch of the account shares."""


class Judgement(NamedTuple):
    """The next step for a batch, and why."""

    step: Step
    why: str = ""


class FilesFound(NamedTuple):
    """What came of fetching a batch's files."""

    any_line: bool
    """Whether there is any line in them."""
    output_gone: bool = False
    """Whether the batch names an output file that the provider has no longer."""


class History(NamedTuple):
    """What the ledger knows of an attempt. Times are Unix seconds."""

    now: float
    deadline_at: float | None = None
    cancelled_by_us: bool = False
    misses: int = 0
    """Looks in a row before this one at which the provider did not know the batch."""
    refusals: int = 0
    """Attempts of the same shard that were turned away as a whole."""


def history_of(shard: Shard, batch: Batch, now: float) -> History:
    """An attempt's history out of the ledger's rows."""
    refusals = sum(other.state is State.REFUSED for other in shard.batches)
    return History(now, batch.deadline_at, batch.cancelled_by_us, batch.misses, refusals)


def judge_end(remote: RemoteBatch | None, files: FilesFound | None, history: History) -> Judgement:
    """Judges a batch.

    Args:
        remote: what the provider says of it; None where it does not know the batch.
        files: what came of fetching its files; None before that.
        history: of the attempt.
    """
    if remote is None:
        if history.misses + 1 < _MOST_MISSES:
            return Judgement(Step.WAIT, "the provider does not know it")
        return Judgement(Step.GIVE_UP, "the provider does not know it any more")
    if remote.status == LOST:
        return Judgement(Step.GIVE_UP, "it was given up")
    if remote.status not in TERMINAL:
        return _judge_open(remote, history)
    if files is not None and files.output_gone:
        return Judgement(Step.GIVE_UP, "its output file is gone")
    holds_answers = remote.may_hold_answers if files is None else files.any_line
    if holds_answers or (refused := _refused_whole(remote, history)) is None:
        return Judgement(Step.COLLECT)
    return refused


def _judge_open(remote: RemoteBatch, history: History) -> Judgement:
    if not history.deadline_at or history.now <= history.deadline_at:
        return Judgement(Step.WAIT)
    if history.cancelled_by_us and history.now > history.deadline_at + _CANCEL_SECONDS:
        return Judgement(Step.GIVE_UP, "it was cancelled, and does not end")
    if remote.status == "cancelling":
        return Judgement(Step.WAIT)
    return Judgement(Step.CANCEL, "it is past its deadline")


def _refused_whole(remote: RemoteBatch, history: History) -> Judgement | None:
    """The refusal of a batch that answered nothing; None: its requests are to be judged one by one."""
    why = remote.error_text or "the batch failed"
    if remote.queue_full:
        return Judgement(Step.WAIT_FOR_QUEUE, why)
    if remote.fatal:
        return Judgement(Step.STOP, why)
    if remote.file_missing and history.refusals < _MOST_REFUSALS:
        return Judgement(Step.WAIT_FOR_FILE, why)
    return None


def recorded_end(batch: Batch) -> RemoteBatch:
    """How a batch ended as the provider said it and the ledger kept it."""
    errors = tuple(RemoteError(*error) for error in batch.errors or ())
    return RemoteBatch(batch.batch_id or "", batch.status or "", errors=errors)


def absent_reply(batch: Batch, ids: list[str]) -> Callable[[str], Reply]:
    """Judges requests without a result line by how their batch ended.

    Args:
        batch: how it ended.
        ids: the shard's custom_ids in the order of its lines, which errors of validation name by number.
    """
    if batch.status in ("expired", "cancelled"):
        code = f"batch_{batch.status}"
        return lambda _id: Reply("expired", error_code=code, error_message=f"the batch ended {batch.status}")
    if batch.status == LOST:
        message = "the provider lost the batch: it knows it no more, its files are gone, or it never ended"
        return lambda _id: Reply("missing", error_code="batch_lost", error_message=message)
    if batch.status != "failed":
        return lambda _id: Reply(
            "missing", error_code="missing", error_message="the files have no line for the request"
        )
    errors = batch.errors or []
    named = {ids[line - 1]: (code, message) for code, message, line in errors if line and line <= len(ids)}
    first = next(((code, message) for code, message, _ in errors), ("batch_failed", "the batch failed"))

    def judge(custom_id: str) -> Reply:
        if custom_id in named:
            return Reply("failed", error_code=named[custom_id][0], error_message=named[custom_id][1])
        verdict: Verdict = "retryable" if named else failure_verdict(None, first[0])
        return Reply(verdict, error_code=first[0], error_message=first[1])

    return judge
