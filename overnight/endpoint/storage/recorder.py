"""Makes finished lines durable: many in one transaction, on a thread and a connection of its own.

A group gathers for a moment, and while the one before it is written: a busy server pays one fsync for many lines.
"""

import asyncio
import logging
import sqlite3
from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, NamedTuple

from overnight.endpoint.storage.lines import ResultLine
from overnight.endpoint.storage.store import connect, transaction

log: Final = logging.getLogger(__name__)

_GATHER_SECONDS: Final = 0.005
"""What a line waits for others: nothing beside the seconds of its answer, and 200 syncs per second at most."""
_RETRY_SECONDS: Final = 1.0


class Finished(NamedTuple):
    """A line with its result, and whether it was sent at off-peak hours."""

    batch_id: str
    line: int
    result: ResultLine
    off_peak: bool = False


class Recorder:
    """Commits finished lines with their batch's counts."""

    def __init__(self, database: Path) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="recorder")
        self.connection = connect(database)
        self._gathered: list[tuple[Finished, asyncio.Future[None]]] = []
        self._writing: asyncio.Task[None] | None = None
        self._closing = False
        self.refusals = 0
        """How often the disk took nothing."""

    async def record(self, finished: Finished) -> None:
        """Return once the line is on disk: only then does it count.

        A disk that is full is waited for, with the paid answer kept in memory meanwhile.
        """
        written = asyncio.get_running_loop().create_future()
        self._gathered.append((finished, written))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write())
        await written

    async def settle(self) -> None:
        """Wait until nothing is left to be written."""
        while self._writing is not None:
            await asyncio.shield(self._writing)

    async def close(self) -> None:
        """Write what is left, if the disk takes it, and end."""
        self._closing = True
        await self.settle()
        self._thread.shutdown()
        self.connection.close()

    async def _write(self) -> None:
        try:
            while self._gathered:
                await asyncio.sleep(_GATHER_SECONDS)
                group, self._gathered = self._gathered, []
                error = await self._commit([finished for finished, _ in group])
                for _, written in group:
                    if written.done():  # its line was cancelled meanwhile; what it cost is kept all the same
                        continue
                    if error:
                        written.set_exception(error)
                    else:
                        written.set_result(None)
        finally:
            self._writing = None

    async def _commit(self, group: list[Finished]) -> Exception | None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                await loop.run_in_executor(self._thread, commit, self.connection, group)
            except sqlite3.OperationalError as error:
                if self._closing:
                    return error
                self.refusals += 1
                log.error("%d finished lines wait to be stored: %s", len(group), error)  # noqa: TRY400 - the message says it
                await asyncio.sleep(_RETRY_SECONDS)
            except Exception as error:  # noqa: BLE001 - whoever waits for a line must hear of it, whatever it is
                return error
            else:
                return None


def commit(connection: sqlite3.Connection, group: Iterable[Finished]) -> None:
    """Insert lines and add up their batches' counts, all or nothing."""
    changes: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    rows = []
    for batch_id, line, result, off_peak in group:
        rows.append((batch_id, line, result.succeeded, result.data))
        counts = changes[batch_id]
        counts["completed" if result.succeeded else "failed"] += 1
        for name, tokens in result.usage._asdict().items():
            counts[name] += tokens
        if off_peak:
            counts["off_peak_lines"] += 1
            counts["off_peak_tokens"] += result.usage.total_tokens
    with transaction(connection):
        connection.executemany("INSERT INTO results VALUES (?, ?, ?, ?)", rows)
        for batch_id, counts in changes.items():
            sums = ", ".join(f"{name} = {name} + :{name}" for name in counts)
            connection.execute(f"UPDATE batches SET {sums} WHERE id = :id", {**counts, "id": batch_id})  # noqa: S608 - own column names
