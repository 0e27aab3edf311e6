"""What is sent again: which requests, in which form, in how large shards."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from overnight.errors import LedgerError
from overnight.files import disk_errors, sync_folder
from overnight.home import JobFolder
from overnight.job import Limits
from overnight.ledger import Ledger
from overnight.profiles import Profile
from overnight.records import Batch, NewShard, Shard
from overnight.shards import Kind, ShardWriter, file_key
from overnight.tokens import frame_bytes
from overnight.verdicts import Reply
from overnight.wire import custom_ids

_TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
_MORE_TOKENS = 2


class Again(NamedTuple):
    """Requests that go out together once more."""

    attempt: int
    reask: int
    largest: int | None
    """Requests in one shard at the most; None: as the provider takes."""


def send_again(
    others: Mapping[str, Reply], progressed: bool, shard: Shard, batch: Batch, limits: Limits
) -> dict[Again, dict[str, Reply]]:
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
    again: dict[Again, dict[str, Reply]] = {}
    cancelled = batch.status == "cancelled" and not batch.cancelled_by_us
    half = max(1, shard.requests // 2)
    for custom_id, reply in others.items():
        how = None
        if reply.verdict == "invalid" and shard.reask < limits.max_reasks and _askable(reply):
            how = Again(shard.attempt, shard.reask + 1, None)
        elif reply.verdict == "expired" and not cancelled:
            how = Again(shard.attempt + (not progressed), shard.reask, half)
        elif reply.error_code == "batch_lost":
            how = Again(shard.attempt + 1, shard.reask, None) if limits.resubmit_lost else None
        elif reply.verdict in ("retryable", "missing"):
            how = Again(shard.attempt + 1, shard.reask, None)
        if how is not None and how.attempt <= limits.max_attempts:
            again.setdefault(how, {})[custom_id] = reply
    return again


def _askable(reply: Reply) -> bool:
    return reply.error_code in ("cut", "invalid_json", "schema_violation", "unknown_label", "no_answer")


def reasked(line: bytes, reply: Reply) -> bytes:
    """A request line with what was wrong with its answer; the same line where nothing can be said.

    A cut answer is asked for with twice the tokens. The id stays: it is the same row's request.
    """
    request: dict[str, Any] = msgspec.json.decode(line)
    body = request["body"]
    if reply.error_code == "cut":
        raised = {name: body[name] * _MORE_TOKENS for name in _TOKEN_LIMITS if isinstance(body.get(name), int)}
        request["body"] = body | raised
    elif said := _said(reply):
        field = "messages" if "messages" in body else "input"
        turns = body[field] if isinstance(body[field], list) else [{"role": "user", "content": body[field]}]
        request["body"] = body | {field: [*turns, *said]}
    return msgspec.json.encode(request) + b"\n"


def _said(reply: Reply) -> list[dict[str, str]]:
    wrong = {"role": "user", "content": f"That is not a valid answer ({reply.error_message}). Answer again, as asked."}
    return [{"role": "assistant", "content": reply.answer}, wrong] if reply.answer else []


def whole_file(folder: JobFolder, shard: Shard, profile: Profile) -> Path:
    """A shard's request file, as it was planned: its key is a hash of its bytes.

    Raises:
        LedgerError: it is gone, or is another by now.
    """
    path = folder.requests / shard.file_name
    if not path.exists() or file_key(path, shard.url, profile) != shard.key:
        what = "and what was sent cannot be told from what was not" if shard.sent else "nothing of it was sent"
        raise LedgerError(f"{path} is missing or not as it was planned ({what}): restore it from a backup")
    return path


def write_again(
    folder: JobFolder, shard: Shard, again: Mapping[Again, Mapping[str, Reply]], profile: Profile, round_: int
) -> list[NewShard]:
    """Copies the lines of requests that go out again into files of a new round.

    Killed before the ledger knows of them, the files are overwritten by the next that get the round.
    """
    numbers = count()

    def write(staging: Path) -> Iterator[NewShard]:
        for how, replies in again.items():
            limits = profile.overridden(max_requests=how.largest and min(how.largest, profile.max_requests))
            writer = ShardWriter(staging, round_, numbers, limits, _kind(shard), how.attempt, how.reask, shard.canary)
            for custom_id, line in _lines(folder, shard):
                if custom_id in replies:
                    writer.write([reasked(line, replies[custom_id]) if how.reask > shard.reask else line])
            yield from writer.finish()

    return _written(folder, write) if again else []


def cut_shard(folder: JobFolder, shard: Shard, profile: Profile, ledger: Ledger) -> list[NewShard]:
    """Plans a shard's requests anew, in shards that a queue takes."""
    numbers, round_ = count(), ledger.next_round(shard.job)

    def write(staging: Path) -> Iterator[NewShard]:
        half = profile.overridden(max_requests=max(1, shard.requests // 2))
        writer = ShardWriter(staging, round_, numbers, half, _kind(shard), shard.attempt, shard.reask, shard.canary)
        for _, line in _lines(folder, shard):
            writer.write([line])
        yield from writer.finish()

    pieces = _written(folder, write)
    ledger.split(shard, pieces)
    return pieces


def _kind(shard: Shard) -> Kind:
    return Kind(shard.model, shard.url, frame_bytes(shard.requests, shard.bytes, shard.tokens))


def _lines(folder: JobFolder, shard: Shard) -> Iterator[tuple[str, bytes]]:
    path = folder.requests / shard.file_name
    with path.open("rb") as lines:
        yield from zip(custom_ids(path), lines, strict=True)


def _written(folder: JobFolder, write: Callable[[Path], Iterator[NewShard]]) -> list[NewShard]:
    staging = folder.path / ".again"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    with disk_errors(staging):
        planned = list(write(staging))
    for new in planned:
        (staging / new.file_name).replace(folder.requests / new.file_name)
    sync_folder(folder.requests)
    staging.rmdir()
    return planned
