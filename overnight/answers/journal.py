"""The journal of a real-time attempt: what was sent, and what came back, on disk before and after each call.

A process that was killed in between leaves requests that were sent and have no answer: they may have been paid, and are
not sent again. Those that the journal does not name were not sent.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from overnight.answers.verdicts import REPLY_LOST
from overnight.ledger.records import Batch
from overnight.store.files import atomic_open, make_private, sync_folder

_ANSWERED, _SENT, _NOT_TAKEN = "custom_id", "sent", "not_taken"


def journal_path(folder: Path, batch: Batch) -> Path:
    """Where an attempt's journal lies while it is under way, on the machine that asks."""
    return folder / f"{batch.token}.journal.jsonl"


def begin_journal(path: Path) -> None:
    """Makes an empty journal, before anything is sent: where it is gone later, what was sent is not known."""
    make_private(path.parent)
    path.touch(mode=0o600)
    sync_folder(path.parent)


class Journal:
    """A journal that is written on; a context that closes its file. Threads may share it."""

    def __init__(self, path: Path) -> None:
        """Opens a journal, and reads what an earlier process wrote.

        A last line that was torn is cut off: it stood before its call, or after one that is in doubt then.

        Raises:
            FileNotFoundError: there is none.
        """
        self._lock = threading.Lock()
        self.in_doubt: set[str] = set()
        """Requests that were sent, and have no answer."""
        self.answered: set[str] = set()
        with path.open("r+b") as before:
            whole = 0
            for line in before:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                self._take(_entry(line))
            before.truncate(whole)
        # At the end, wherever that is: a process that slept, and lost its lease, may write its last line yet.
        self._file = path.open("a+b")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def sent(self, custom_id: str) -> None:
        """Notes that a request is about to be sent."""
        self._write({_SENT: custom_id})

    def not_taken(self, custom_id: str) -> None:
        """Notes that it was turned away unbilled."""
        self._write({_NOT_TAKEN: custom_id})

    def answer(self, line: bytes) -> None:
        """Keeps the line of a request's answer."""
        self._write(_entry(line), line)

    def lines(self) -> Iterator[bytes]:
        """The answers, as lines of a result file."""
        self._file.seek(0)
        yield from (line for line in self._file if _ANSWERED in _entry(line))

    def _write(self, entry: dict[str, Any], line: bytes | None = None) -> None:
        with self._lock:
            self._file.write(line or msgspec.json.encode(entry) + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())
            self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        if (custom_id := entry.get(_ANSWERED)) is not None:
            self.answered.add(custom_id)
            self.in_doubt.discard(custom_id)
        elif (custom_id := entry.get(_NOT_TAKEN)) is not None:
            self.in_doubt.discard(custom_id)
        elif (custom_id := entry.get(_SENT)) is not None:
            self.in_doubt.add(custom_id)


def _entry(line: bytes) -> dict[str, Any]:
    """An entry; one that cannot be read tells nothing, and the request that it was of stays in doubt."""
    try:
        found = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}


def write_results(path: Path, answers: Iterable[bytes], in_doubt: Iterable[str]) -> None:
    """Writes an attempt's result file: a line for each answer, and one for each request whose reply was lost."""
    error = {"code": REPLY_LOST, "message": "it was asked in real time, and its reply was lost: it may have been paid"}
    with atomic_open(path) as lines:
        lines.writelines(answers)
        for custom_id in sorted(in_doubt):
            lines.write(msgspec.json.encode({"custom_id": custom_id, "response": None, "error": error}) + b"\n")
