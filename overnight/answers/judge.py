"""The one judge of how a batch ended, and of what that means for its requests. Pure: facts in, the next step out.

`wait` asks with what the provider says of a batch, `parse` once more with the files that came. Nobody else decides
whether a batch is over, late, lost, or turned away as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Literal, NamedTuple

from overnight.answers.verdicts import Reply, Verdict, failure_verdict
from overnight.ledger.records import Batch, Shard
from overnight.ledger.states import State
from overnight.providers.replies import TERMINAL, RemoteBatch, RemoteError

LOST = "lost"
"""The status that the ledger gives to a batch that was given up; no provider says it."""
ABSENCE_SECONDS = 600.0
"""How far apart two complete listings that lack a batch have to be: one may lag behind, or be of a replica."""
CONTRADICTION_SECONDS = 3600.0
"""How long a reply that contradicts itself is simply looked at again, before a person is told of it."""
_CANCEL_SECONDS = 3600.0
"""How long after its deadline a cancelled batch may take to end: OpenAI says ten minutes, hours were seen."""
_MOST_REFUSALS = 6
"""How often a shard goes out again whose file the provider does not find: it showed up within minutes
(openai-dotnet#312), and what is not there after that is no delay."""


class Step(StrEnum):
    """What is to be done about a batch."""

    WAIT = "wait"
    """It goes on: look again."""
    CANCEL = "cancel"
    """It is past its deadline: have it cancelled, and look again."""
    LOOK_AGAIN = "look again"
    """What the provider says cannot be, or cannot be all: nothing is concluded from it, and it is asked again."""
    LIST = "list"
    """The provider does not know it: whether a complete listing does is the evidence that is missing."""
    MISS = "miss"
    """Two complete listings, far enough apart, lack it: it is lost, and looked for all the same."""
    COLLECT = "collect"
    """It is over: its files are read, and its requests are judged one by one."""
    GIVE_UP = "give up"
    """Its answers cannot be had any more, or a person says so: what it held may have been paid."""
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

    lines: int
    """In both files."""
    output_gone: bool = False
    """Whether the batch names an output file that the provider does not have now."""
    error_gone: bool = False
    """The same of the error file, which some providers name and never make."""


class Counts(NamedTuple):
    """How many requests of a batch the provider says to have worked on; None where it does not say."""

    done: int | None
    failed: int | None
    sent: int
    """Requests of the shard."""


Listing = Literal["not asked", "failed", "lacks it"]


class History(NamedTuple):
    """What the ledger knows of an attempt. Times are Unix seconds."""

    now: float
    deadline_at: float | None = None
    kept_until: float | None = None
    """When the provider deletes outputs; None: it is not known yet."""
    listing: Listing = "not asked"
    """What a complete listing of the account said in this look."""
    absent_for: float | None = None
    """Seconds since the first complete listing that lacked it, as all have since; None where none did."""
    cancelled_by_us: bool = False
    lost: bool = False
    """Whether it counts as lost already."""
    given_up: bool = False
    """Whether a person gave it up, or allows in the job that what is lost is sent again."""
    trouble_for: float = 0.0
    """Seconds since it could not be collected first."""
    refusals: int = 0
    """Attempts of the same shard that were turned away since their file was not there."""


def history_of(
    shard: Shard, batch: Batch, now: float, *, keep_days: float, resubmit_lost: bool = False,
    listing: Listing = "not asked", deadline_at: float | None = None,
) -> History:  # fmt: skip
    """An attempt's history out of the ledger's rows.

    Args:
        shard: of the attempt.
        batch: the attempt.
        now: Unix seconds.
        keep_days: how long the provider keeps outputs.
        resubmit_lost: whether the job allows that what is lost is sent again: a person's word, as soon as it is lost.
        listing: what a listing said in this look.
        deadline_at: when it is cancelled.
    """
    lost = batch.state is State.LOST
    trouble_for = now - batch.trouble_since if batch.trouble_since is not None else 0.0
    # A lost batch has to be lacking in a listing of this very look, before anything is sent again.
    allowed = (lost and listing == "lacks it") or (batch.state is not State.SUBMITTED and trouble_for > ABSENCE_SECONDS
                                                   and not lost) or _never_ends(batch, now)  # fmt: skip
    return History(
        now=now,
        deadline_at=deadline_at,
        kept_until=(batch.ended_at or batch.submitted_at or now) + keep_days * 86_400,
        listing=listing,
        absent_for=now - batch.absent_since if batch.absent_since is not None else None,
        cancelled_by_us=batch.cancelled_by_us,
        lost=lost,
        given_up=batch.given_up or (resubmit_lost and allowed),
        trouble_for=trouble_for,
        refusals=sum(other.refused_for == "file" for other in shard.batches),
    )


def _never_ends(batch: Batch, now: float) -> bool:
    """Whether a batch was cancelled by us, and has not ended for an hour."""
    return batch.cancelled_by_us and now > (batch.deadline_at or now) + _CANCEL_SECONDS


def judge_end(remote: RemoteBatch | None, files: FilesFound | None, counts: Counts, history: History) -> Judgement:
    """Judges a batch.

    Nothing that cannot be taken back follows from one 404, a missing file, or a contradictory reply: these are trouble,
    and asked about again, until a person or the end of the retention time gives the batch up.

    Args:
        remote: what the provider says of it; None where it does not know the batch.
        files: what came of fetching its files; None before that.
        counts: of its requests, as the provider says them.
        history: of the attempt.
    """
    if remote is None or (files is not None and files.output_gone):
        return _judge_absent(remote, history)
    if remote.status == LOST:
        return Judgement(Step.GIVE_UP, "it was given up")
    if remote.status not in TERMINAL:
        return _judge_open(remote, history)
    if (contradiction := _contradiction(remote, files, counts, history.trouble_for)) is not None:
        over = history.given_up or _too_old(history)
        return Judgement(Step.GIVE_UP if over else Step.LOOK_AGAIN, contradiction)
    holds_answers = remote.may_hold_answers if files is None else files.lines > 0
    if holds_answers or (refused := _refused_whole(remote, history)) is None:
        return Judgement(Step.COLLECT)
    return refused


def _judge_absent(remote: RemoteBatch | None, history: History) -> Judgement:
    """A batch, or its output file, that the provider answers with 404."""
    why = "the provider does not know it" if remote is None else "its output file is not there"
    if remote is None and history.listing == "not asked":
        return Judgement(Step.LIST, why)
    if _too_old(history):
        return Judgement(Step.GIVE_UP, f"{why}, and would have deleted its output by now")
    if history.given_up:
        return Judgement(Step.GIVE_UP, f"{why}, and it was given up")
    seen_absent = history.listing == "lacks it" and (history.absent_for or 0.0) >= ABSENCE_SECONDS
    if remote is None and seen_absent and not history.lost:
        minutes = (history.absent_for or 0.0) / 60
        return Judgement(Step.MISS, f"{why}, and its listings have lacked it for {minutes:.0f} minutes")
    return Judgement(Step.LOOK_AGAIN, why)


def _too_old(history: History) -> bool:
    return history.kept_until is not None and history.now > history.kept_until


def _judge_open(remote: RemoteBatch, history: History) -> Judgement:
    if not history.deadline_at or history.now <= history.deadline_at:
        return Judgement(Step.WAIT)
    if history.cancelled_by_us and history.now > history.deadline_at + _CANCEL_SECONDS:
        over = history.given_up or _too_old(history)
        return Judgement(Step.GIVE_UP if over else Step.LOOK_AGAIN, "it was cancelled, and does not end")
    if remote.status == "cancelling":
        return Judgement(Step.WAIT)
    return Judgement(Step.CANCEL, "it is past its deadline")


def _contradiction(remote: RemoteBatch, files: FilesFound | None, counts: Counts, trouble_for: float) -> str | None:
    """What a reply says of an end that cannot be all: answers that no file holds, or an end that nothing shows."""
    worked = (counts.done or 0) + (counts.failed or 0)
    named = bool(remote.output_file_id or remote.error_file_id)
    bare = not named if files is None else not files.lines
    where = "its files hold no line" if named else "it names no file"
    if bare and worked:
        return f"it is {remote.status} with {worked:,} requests worked on, and {where}"
    if bare and remote.status == "completed":
        return f"it is completed, and {where}"
    if files is not None and files.error_gone and files.lines < counts.sent and trouble_for < CONTRADICTION_SECONDS:
        return f"its error file is not there, and {files.lines:,} of {counts.sent:,} requests have a line"
    early = files is None and trouble_for < CONTRADICTION_SECONDS
    if early and counts.done and not remote.output_file_id:  # some put all answers into the error file: read it then
        return f"it is {remote.status} with {counts.done:,} requests done, and names no output file"
    return None


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
    return RemoteBatch(
        batch.batch_id or "",
        batch.status or "",
        output_file_id=batch.output_file_id,
        error_file_id=batch.error_file_id,
        done=batch.done,
        failed=batch.failed,
        errors=errors,
    )


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
