"""Hours at which an upstream is cheap, and whether a batch may wait for them. Pure: the time is passed in.

Times of the week are seconds since Monday 00:00 UTC.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

DAY: Final = 86_400
WEEK: Final = 7 * DAY
_MONDAY: Final = 4 * DAY
"""1970-01-05, the first Monday of Unix time."""
_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_TIMES: Final = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-(?:([01]\d|2[0-3]):([0-5]\d)|24:00)")
_FORM: Final = "'Mon-Fri 01:00-04:00,06:00-10:00; Sat 08:00-12:00 UTC peak' (at the end: peak or off-peak)"

SAFETY: Final = 1.5
MARGIN_SECONDS: Final = 600.0
DEFAULT_RATE: Final = 4.0
"""Lines per second that are assumed before any were measured: 8 at once, 2 seconds each."""

Span = tuple[int, int]


@dataclass(frozen=True)
class Schedule:
    """The peak hours of an upstream."""

    name: str
    peaks: tuple[Span, ...]
    """Start and end in seconds of the week, sorted, apart from each other."""
    discount: float | None = None
    """What is saved outside of them, 0.5 for half; None where nobody said."""
    source: str | None = None
    """Where the hours are from, and when they were read."""

    def is_peak(self, now: float) -> bool:
        """Whether the upstream is dear now."""
        second = (now - _MONDAY) % WEEK
        return any(start <= second < end for start, end in self.peaks)

    def opens_at(self, now: float) -> float | None:
        """Return when the cheap hours begin; None when they are on."""
        found = None
        while self.is_peak(now):
            second = (now - _MONDAY) % WEEK
            now = found = now - second + next(end for start, end in self.peaks if start <= second < end)
        return found

    def cheap_seconds(self, start: float, end: float) -> float:
        """Return how much of a span of time is off-peak."""
        monday = start - (start - _MONDAY) % WEEK
        dear = 0.0
        while monday < end:
            dear += sum(max(0.0, min(end, monday + b) - max(start, monday + a)) for a, b in self.peaks)
            monday += WEEK
        return max(0.0, end - start) - dear

    def shown(self) -> list[str]:
        """Return the peaks as texts such as `Mon 01:00 - Mon 04:00 UTC`."""
        return [f"{_moment(start)} - {_moment(end)} UTC" for start, end in self.peaks]


def waits(schedule: Schedule, now: float, expires_at: float, lines_left: int, rate: float | None) -> bool:
    """Whether a batch stands still now: the hour is dear, and the cheap ones before its end are enough for its lines.

    Args:
        schedule: the peak hours.
        now: Unix time.
        expires_at: the end of the batch's completion window, Unix time.
        lines_left: unfinished lines of all open batches, which share the upstream.
        rate: lines per second as measured; None before that.
    """
    if not schedule.is_peak(now):
        return False
    needed = lines_left / (rate or DEFAULT_RATE) * SAFETY + MARGIN_SECONDS
    return schedule.cheap_seconds(now, expires_at) >= needed


def read_schedule(text: str) -> Schedule:
    """Read `deepseek`, or hours such as `Mon-Fri 01:00-04:00,06:00-10:00; Sat 08:00-12:00 UTC peak`.

    Days are `daily`, or names and ranges of names; a time that ends before it starts goes over midnight. The last word
    says which hours are listed: `peak` or `off-peak`.

    Raises:
        ValueError: with the accepted form.
    """
    if known := KNOWN.get(text.strip().lower()):
        return known
    match = re.fullmatch(r"(.+?)\s+UTC\s+(peak|off-peak)", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"cannot be read: give {' or '.join(KNOWN)}, or hours such as {_FORM}")
    spans = list(_merged(span for clause in match[1].split(";") for span in _spans(clause.strip())))
    peaks = tuple(spans if match[2].lower() == "peak" else _complement(spans))
    if not peaks or peaks == ((0, WEEK),):
        raise ValueError("must leave both peak and off-peak hours in the week")
    return Schedule(text.strip(), peaks)


def _spans(clause: str) -> Iterator[Span]:
    days, _, times = clause.partition(" ")
    for day in _days(days):
        for time in times.replace(" ", "").split(","):
            match = _TIMES.fullmatch(time)
            if not match:
                raise ValueError(f"'{time}' is not a time such as 01:00-04:00; give {_FORM}")
            start = int(match[1]) * 3600 + int(match[2]) * 60
            end = int(match[3]) * 3600 + int(match[4]) * 60 if match[3] else DAY
            begins, length = day * DAY + start, (end - start) % DAY or DAY
            yield begins, min(WEEK, begins + length)
            if begins + length > WEEK:
                yield 0, begins + length - WEEK


def _days(text: str) -> Iterator[int]:
    if text.lower() == "daily":
        yield from range(7)
        return
    for part in text.split(","):
        first, _, last = part.partition("-")
        try:
            start = _DAYS.index(first.capitalize())
            end = _DAYS.index(last.capitalize()) if last else start
        except ValueError:
            raise ValueError(f"'{part}' is not a day such as Mon or Mon-Fri; give {_FORM}") from None
        yield from ((start + offset) % 7 for offset in range((end - start) % 7 + 1))


def _merged(spans: Iterable[Span]) -> Iterator[Span]:
    kept: Span | None = None
    for start, end in sorted(spans):
        if kept and start <= kept[1]:
            kept = (kept[0], max(kept[1], end))
            continue
        if kept:
            yield kept
        kept = (start, end)
    if kept:
        yield kept


def _complement(spans: Iterable[Span]) -> Iterator[Span]:
    at = 0
    for start, end in spans:
        if start > at:
            yield at, start
        at = end
    if at < WEEK:
        yield at, WEEK


def _moment(second: int) -> str:
    if second == WEEK:
        return "Sun 24:00"
    return f"{_DAYS[second // DAY]} {second % DAY // 3600:02}:{second % 3600 // 60:02}"


def _weekdays(*hours: Span) -> tuple[Span, ...]:
    return tuple((day * DAY + start * 3600, day * DAY + end * 3600) for day in range(5) for start, end in hours)


KNOWN: Final = {
    "deepseek": Schedule(
        "deepseek",
        # Chinese public holidays are off-peak all day; waiting through them costs time, never money.
        _weekdays((1, 4), (6, 10)),
        discount=0.5,
        source="https://github.com/benderandrew069/deepseek-api-pricing-2026/wiki, read 2026-10-27",
    )
}
