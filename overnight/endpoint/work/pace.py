"""How many lines run at once: a limit that follows what the upstream bears.

It is decided once per window of finished attempts. The limit grows while more lines at once bring more answers per
second, goes back when they only bring longer latencies, and shrinks when the upstream refuses. Pure: what happened goes
in, the next limit comes out.
"""

from dataclasses import dataclass, replace
from typing import Final

FIRST_LIMIT: Final = 8
MOST: Final = 256

TOLERATED_FAILURES: Final = 0.2
"""Share of attempts that may fail (5xx, timeout, no connection) without a smaller limit: some upstreams always do."""
TOLERATED_REFUSALS: Final = 0.02
"""Share of attempts that may be refused with 429."""
REST_WINDOWS: Final = 8
MIN_ATTEMPTS: Final = 16
MIN_SECONDS: Final = 0.1


@dataclass(frozen=True)
class Window:
    """What happened since the last decision."""

    seconds: float
    answered: int
    """Attempts with an answer that says nothing of overload, be it a success or an error of the request."""
    refused: int
    """Attempts answered with 429."""
    failed: int
    """Attempts that met a 5xx, a timeout or no connection."""
    latency: float
    """Mean seconds of the answered attempts."""
    full: bool
    """Whether lines waited because the limit was reached: without that, nothing is learned about it."""

    @property
    def attempts(self) -> int:
        """All finished attempts."""
        return self.answered + self.refused + self.failed


@dataclass(frozen=True)
class Pace:
    """The limit, and what is known about it."""

    limit: int
    base: int
    """The highest limit that is known to be worth it; `limit` is more while more is tried."""
    rate: float = 0.0
    """Answers per second at `base`."""
    latency: float = 0.0
    """Mean seconds of an answer at `base`."""
    doubling: bool = True
    """Whether a try is twice the base, as long as nothing went wrong yet; later it is a quarter more."""
    rest: int = 0
    """Windows until more is tried."""


def is_over(window: Window, limit: int) -> bool:
    """Whether a window has seen enough to decide: two rounds of the limit, and long enough for a rate."""
    return window.attempts >= max(MIN_ATTEMPTS, 2 * limit) and window.seconds >= MIN_SECONDS


def next_pace(pace: Pace, window: Window, most: int) -> Pace:
    """Decide the limit for the next window; it is from 1 to `most`."""
    if _overloaded(window):
        limit = max(1, min(pace.base, pace.limit * 7 // 10))
        return Pace(limit, limit, doubling=False, rest=REST_WINDOWS // 2)
    if not window.full:
        return pace
    rate = window.answered / window.seconds
    trying = pace.limit > pace.base
    if trying and rate < pace.rate * (1.25 if pace.doubling else 1.05):
        return replace(pace, limit=pace.base, doubling=False, rest=REST_WINDOWS)
    if not trying and rate < pace.rate * 0.7 and window.latency > pace.latency * 1.5:
        limit = max(1, pace.limit * 4 // 5)
        return Pace(limit, limit, rate, window.latency, doubling=False, rest=REST_WINDOWS)
    if pace.rest:
        return replace(pace, rate=rate, latency=window.latency, rest=pace.rest - 1)
    more = pace.limit * 2 if pace.doubling else pace.limit + max(1, pace.limit // 4)
    return Pace(min(most, more), pace.limit, rate, window.latency, pace.doubling)


def _overloaded(window: Window) -> bool:
    attempts = max(1, window.attempts)
    return window.refused / attempts > TOLERATED_REFUSALS or window.failed / attempts > TOLERATED_FAILURES


def outage_pause(failures: int) -> float:
    """Return the seconds that nothing is sent after so many failed attempts without an answer between them.

    An upstream that is down should cost a few lines their attempts, not a whole batch.
    """
    return 0.0 if failures < 10 else min(30.0, 2.0 ** min(5, failures - 10))
