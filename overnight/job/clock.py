"""Times of day that a job names, as moments."""

from __future__ import annotations

import re
from datetime import datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

_HOURS = re.compile(r"(\d{1,3})h")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?: (\S+))?")


def finish_at(finish_by: str, begun_at: float) -> float:
    """When a job is to be done, in Unix seconds.

    Args:
        finish_by: `20h` after it was begun, or `06:00`, the next time that a clock shows it: this machine's, or one of
            the time zone that is named behind it.
        begun_at: Unix seconds.

    Raises:
        ValueError: it is neither, or there is no such time zone.
    """
    if (hours := _HOURS.fullmatch(finish_by)) is not None and int(hours[1]):
        return begun_at + int(hours[1]) * 3600
    if (clock := _CLOCK.fullmatch(finish_by)) is None:
        raise ValueError(f"{finish_by!r} should be a time such as 06:00 or 06:00 Europe/Berlin, or 20h")
    zone: tzinfo | None = None
    if clock[3]:
        try:
            zone = ZoneInfo(clock[3])
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"there is no time zone {clock[3]!r}; one is Europe/Berlin") from None
    begun = datetime.fromtimestamp(begun_at, zone)
    hour, minute = int(clock[1]), int(clock[2])
    found = begun.replace(hour=hour, minute=minute, second=0, microsecond=0)
    return (found if found > begun else (found + timedelta(days=1))).timestamp()
