"""Requests and tokens per minute as token buckets: pure arithmetic on a clock that is passed in."""

from typing import Final

_BURST_SECONDS: Final = 1.0


class Quota:
    """So many units a minute, spread evenly: at most one second's worth, and at least one unit, at once.

    Taking may go into debt, which is paid back by waiting: what a line costs in tokens is known only afterwards.
    """

    def __init__(self, per_minute: float, now: float) -> None:
        self._per_second = per_minute / 60
        self._most = max(1.0, self._per_second * _BURST_SECONDS)
        self._level, self._at = self._most, now

    def wait(self, now: float) -> float:
        """Return the seconds until one unit is there."""
        self._refill(now)
        return max(0.0, (1.0 - self._level) / self._per_second)

    def take(self, units: float, now: float) -> None:
        """Take units; negative ones are given back."""
        self._refill(now)
        self._level = min(self._most, self._level - units)

    def _refill(self, now: float) -> None:
        self._level = min(self._most, self._level + max(0.0, now - self._at) * self._per_second)
        self._at = max(self._at, now)
