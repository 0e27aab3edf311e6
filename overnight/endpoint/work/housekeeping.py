"""What is done from time to time: the room on the disk is watched, and what is old is deleted."""

import asyncio
import logging
import sqlite3
from collections.abc import Callable
from typing import Final

from overnight.endpoint.storage.disk import Disk
from overnight.endpoint.storage.store import Store
from overnight.endpoint.work.gate import Gate

log: Final = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
_SWEEP_EVERY: Final = 12
"""Looks at the disk from one sweep to the next."""


class Housekeeping:
    """Watches the disk, and deletes what is over its time."""

    def __init__(
        self,
        store: Store,
        gate: Gate,
        disk: Disk,
        keep_seconds: int | None,
        clock: Callable[[], float],
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """Keep batches that have ended for so long, None for ever; files have their own time."""
        self._store, self._gate, self._disk, self._keep_seconds, self._clock = store, gate, disk, keep_seconds, clock
        self._look_seconds = look_seconds

    async def run(self) -> None:
        """Go on until cancelled."""
        looks = 0
        while True:
            try:
                self.look()
                if looks % _SWEEP_EVERY == 0:
                    self.sweep()
            except (OSError, sqlite3.Error) as error:
                # A full disk heals, and the next look must see it.
                log.error("the disk was not looked after: %s", error)  # noqa: TRY400 - the message says it
            looks += 1
            await asyncio.sleep(self._look_seconds)

    def look(self) -> None:
        """Let no line start that might find no room for its answer, which is paid by then."""
        shortage = self._disk.shortage()
        if shortage and not self._gate.closed:
            log.warning("no line is started: %s", shortage)
        self._gate.closed = shortage

    def sweep(self) -> None:
        """Delete files that have expired, and batches that ended long ago; leave nothing of what is deleted."""
        now = int(self._clock())
        files = self._store.expired_files(now)
        for file_id in files:
            self._store.delete_file(file_id)
        batches = self._store.forget_batches(now - self._keep_seconds) if self._keep_seconds is not None else 0
        self._store.empty_log()
        if files or batches:
            log.info("%d files and %d batches were over their time: deleted", len(files), batches)
