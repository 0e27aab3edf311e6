"""What is left to do, and whether it may be done at this hour."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from overnight.endpoint.off_peak import Schedule, waits

log: Final = logging.getLogger(__name__)


@dataclass
class _Open:
    expires_at: int
    left: int
    said: str = ""
    """What the log says of it by now."""


class Backlog:
    """The unfinished lines of the batches that run, and the upstream's hours."""

    def __init__(self, schedule: Schedule | None, clock: Callable[[], float]) -> None:
        self.schedule, self._clock = schedule, clock
        self._open: dict[str, _Open] = {}

    @property
    def lines(self) -> int:
        """Unfinished lines of all batches that run."""
        return sum(batch.left for batch in self._open.values())

    def begin(self, batch_id: str, expires_at: int, lines: int) -> None:
        """Count a batch's lines in."""
        self._open[batch_id] = _Open(expires_at, lines)

    def done(self, batch_id: str) -> None:
        """Count one line out."""
        if batch := self._open.get(batch_id):
            batch.left -= 1

    def end(self, batch_id: str) -> None:
        """Count what is left of a batch out."""
        self._open.pop(batch_id, None)

    def holds(self, batch_id: str, rate: float | None) -> bool:
        """Whether a batch stands still until cheaper hours, at a rate of lines per second; says so in the log."""
        batch = self._open.get(batch_id)
        if self.schedule is None or batch is None:
            return False
        now = self._clock()
        held = waits(self.schedule, now, batch.expires_at, self.lines, rate)
        said = ("waits for off-peak hours" if held else "runs, or would miss its window") * self.schedule.is_peak(now)
        if said and said != batch.said:
            log.info("batch %s: peak hours of %s: %s", batch_id, self.schedule.name, said)
        batch.said = said
        return held

    def is_off_peak(self) -> bool:
        """Whether a line that is sent now is cheap."""
        return self.schedule is not None and not self.schedule.is_peak(self._clock())

    def hours(self) -> dict[str, Any] | None:
        """Return the hours as the health page shows them; None where none are set."""
        if self.schedule is None:
            return None
        opens_at = self.schedule.opens_at(self._clock())
        return {
            "name": self.schedule.name,
            "peak": self.schedule.shown(),
            "discount": self.schedule.discount,
            "source": self.schedule.source,
            "open": opens_at is None,
            "opens_at": None if opens_at is None else int(opens_at),
        }
