"""What is done from time to time: the room on the disk is watched, and what is old is deleted."""

import asyncio
import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final

from overnight.endpoint.errors import ApiError
from overnight.endpoint.gate import Gate
from overnight.endpoint.store import Store

log: Final = logging.getLogger(__name__)

LOOK_SECONDS: Final = 5.0
_SWEEP_EVERY: Final = 12
"""Looks at the disk from one sweep to the next."""


class Disk:
    """The room on the disk of a directory, of which some stays free."""

    def __init__(self, directory: Path, min_free_bytes: int) -> None:
        self._directory, self._min_free = directory, min_free_bytes

    def shortage(self, extra: int = 0) -> str | None:
        """Say what is missing for so many bytes more; None when there is room."""
        free = shutil.disk_usage(self._directory).free - extra
        if free >= self._min_free:
            return None
        return (
            f"The endpoint's disk is nearly full: {free >> 20} MiB would be free, {self._min_free >> 20} must stay. "
            "Delete files, or free space."
        )

    def check(self, extra: int = 0) -> None:
        """Refuse what there is no room for.

        Raises:
            ApiError: 507.
        """
        if message := self.shortage(extra):
            raise ApiError(507, message, code="insufficient_storage")


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
        """Delete files that have expired, and batches that ended long ago."""
        now = int(self._clock())
        files = self._store.expired_files(now)
        for file_id in files:
            self._store.delete_file(file_id)
        batches = self._store.forget_batches(now - self._keep_seconds) if self._keep_seconds is not None else 0
        if files or batches:
            log.info("%d files and %d batches were over their time: deleted", len(files), batches)
