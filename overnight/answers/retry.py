"""What is sent again: which requests, in which form, in how large shards."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from overnight.answers.verdicts import MAYBE_PAID, Reply
from overnight.job.job import Limits
from overnight.job.profiles import Profile
from overnight.job.task import TOKEN_LIMITS
from overnight.ledger.records import Batch, NewShard, Shard
from overnight.ledger.request_files import kind_of, request_file, shard_lines, staged_files
from overnight.ledger.shards import ShardWriter
from overnight.store.home import JobFolder

_MORE_TOKENS = 2
"""A budget reserves with the same factor (`limits.budget.most_cost`)."""


class Retry(NamedTuple):
    """Requests that go out together once more."""

    attempt: int
    reask: int
    largest: int | None
    """Requests in one shard at the most; None: as the provider takes."""


def retries_of(
    others: Mapping[str, Reply], progressed: bool, shard: Shard, batch: Batch, limits: Limits
) -> dict[Retry, dict[str, Reply]]:
    """Sorts the requests of a batch that did not succeed to those that go out again, and how.

    A request that was not answered in time uses up no attempt, unless its batch answered none at all, and goes out in
    shards of half the size. What a person cancelled stays cancelled, and what a lost batch held may have been paid.
    An invalid answer is asked for again with what was wrong with it.

    Args:
        others: replies by custom_id.
        progressed: whether the batch answered anything.
        shard: what was sent.
        batch: how it ended.
        limits: the job's.
    """
    again: dict[Retry, dict[str, Reply]] = {}
    cancelled = batch.status == "cancelled" and not batch.cancelled_by_us
    # Cancelled before its own time was over, for its requests to be rescued: it may have needed nothing but that time.
    early = batch.cancelled_by_us and (batch.ended_at or 0.0) < (batch.deadline_at or math.inf)
    half = None if early else max(1, shard.requests // 2)
    for custom_id, reply in others.items():
        how = None
        if reply.verdict == "invalid" and shard.reask < limits.max_reasks and _askable(reply):
            how = Retry(shard.attempt, shard.reask + 1, None)
        # Time ran out: the same requests in one batch would run out of it again, in two they are done in half of it.
        elif reply.verdict == "expired" and not cancelled:
            how = Retry(shard.attempt + (not progressed and not early), shard.reask, half)
        elif reply.error_code in MAYBE_PAID:
            how = Retry(shard.attempt + 1, shard.reask, None) if limits.resubmit_lost else None
        elif reply.verdict in ("retryable", "missing"):
            how = Retry(shard.attempt + 1, shard.reask, None)
        if how is not None and how.attempt <= limits.max_attempts:
            again.setdefault(how, {})[custom_id] = reply
    return again


def _askable(reply: Reply) -> bool:
    return reply.error_code in (
        "cut", "invalid_json", "schema_violation", "unknown_label", "no_answer", "no_tool_call", "unknown_tool"
    )  # fmt: skip


def reasked(line: bytes, reply: Reply) -> bytes:
    """A request line with what was wrong with its answer; the same line where nothing can be said.

    A cut answer is asked for with twice the tokens, where the request limits them. The id stays: it is the same row's
    request.
    """
    request: dict[str, Any] = msgspec.json.decode(line)
    body = request["body"]
    raised = {name: body[name] * _MORE_TOKENS for name in TOKEN_LIMITS if isinstance(body.get(name), int)}
    if reply.error_code == "cut" and raised:
        request["body"] = body | raised
    elif request["url"].endswith(("/chat/completions", "/responses")):
        said = _said(reply)
        field = "messages" if "messages" in body else "input"
        turns = body[field] if isinstance(body[field], list) else [{"role": "user", "content": body[field]}]
        request["body"] = body | {field: [*turns, *said]}
    return msgspec.json.encode(request) + b"\n"


def _said(reply: Reply) -> list[dict[str, str]]:
    wrong = f"That is not a valid answer ({reply.error_message}). Answer again, as asked."
    before = [{"role": "assistant", "content": reply.answer}] if reply.answer else []
    return [*before, {"role": "user", "content": wrong}]


def write_retries(
    folder: JobFolder, shard: Shard, again: Mapping[Retry, Mapping[str, Reply]], profile: Profile, round_: int
) -> list[NewShard]:
    """Copies the lines of requests that go out again into files of a new round; `place_round` moves them into place."""
    if not again:
        return []
    numbers, source = count(), request_file(folder, shard, profile)

    def write(staging: Path) -> Iterator[NewShard]:
        for how, replies in again.items():
            limits = profile.overridden(max_requests=how.largest and min(how.largest, profile.max_requests))
            writer = ShardWriter(staging, round_, numbers, limits, kind_of(shard), how.attempt, how.reask, shard.canary)
            for custom_id, line in shard_lines(source):
                if custom_id not in replies:
                    continue
                asked = reasked(line, replies[custom_id]) if how.reask > shard.reask else line
                if how.reask == shard.reask or asked != line:  # the same words would get the same answer, and be paid
                    writer.write([asked])
            yield from writer.finish()

    return staged_files(folder, round_, write)
