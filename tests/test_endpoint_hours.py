"""Cheap hours: how they are read, and when a batch waits for them."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.endpoint.off_peak import DAY, WEEK, Schedule, read_schedule, waits
from overnight.endpoint.work.backlog import Backlog

DEEPSEEK = read_schedule("deepseek")
HOUR = 3600


def at(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


# 2026-11-02 is a Monday.
MOMENTS = [
    pytest.param("2026-11-02T00:59:59", None, id="Monday, a second before the first peak"),
    pytest.param("2026-11-02T01:00:00", "2026-11-02T04:00:00", id="its first second"),
    pytest.param("2026-11-02T03:59:59", "2026-11-02T04:00:00", id="its last second"),
    pytest.param("2026-11-02T04:00:00", None, id="between the peaks"),
    pytest.param("2026-11-06T06:00:00", "2026-11-06T10:00:00", id="Friday, the second peak"),
    pytest.param("2026-11-07T02:00:00", None, id="Saturday"),
    pytest.param("2026-11-08T09:00:00", None, id="Sunday"),
]


@pytest.mark.parametrize(("moment", "opens"), MOMENTS)
def test_deepseeks_peaks_are_on_weekdays_in_utc(moment: str, opens: str | None) -> None:
    assert DEEPSEEK.is_peak(at(moment)) == (opens is not None)
    assert DEEPSEEK.opens_at(at(moment)) == (at(opens) if opens else None)


def test_deepseeks_hours_name_their_source_and_their_discount() -> None:
    assert DEEPSEEK.discount == 0.5
    assert DEEPSEEK.source is not None
    assert "https://" in DEEPSEEK.source
    assert "2026" in DEEPSEEK.source
    assert read_schedule("Mon-Fri 01:00-04:00,06:00-10:00 UTC peak").peaks == DEEPSEEK.peaks


READ = [
    pytest.param("daily 08:00-20:00 UTC peak", ((8, 20), (32, 44)), id="every day"),
    pytest.param("Mon 22:00-06:00 UTC peak", ((22, 30),), id="over midnight"),
    pytest.param("Sun 22:00-02:00 UTC peak", ((0, 2), (166, 168)), id="over the end of the week"),
    pytest.param("Sat-Sun 00:00-24:00 UTC off-peak", ((0, 120),), id="off-peak is the rest"),
    pytest.param("fri-mon 01:00-02:00 utc PEAK", ((1, 2), (97, 98), (121, 122), (145, 146)), id="days over the weekend"),
    pytest.param("Mon,Wed 01:00-02:00; Tue 03:00-04:00 UTC peak", ((1, 2), (27, 28), (49, 50)), id="clauses"),
    pytest.param("Mon 01:00-03:00,02:00-05:00 UTC peak", ((1, 5),), id="overlapping times are one"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "hours"), READ)
def test_hours_are_read(text: str, hours: tuple[tuple[int, int], ...]) -> None:
    peaks = read_schedule(text).peaks
    assert peaks[: len(hours)] == tuple((start * HOUR, end * HOUR) for start, end in hours)
    assert len(peaks) == (7 if text.startswith("daily") else len(hours))


@pytest.mark.parametrize(
    "text",
    ["", "night", "Mon 01:00-04:00 UTC", "Mon 01:00-04:00 peak", "Mon 1:00-4:00 UTC peak", "Mon 25:00-26:00 UTC peak",
     "Someday 01:00-02:00 UTC peak", "Mon UTC peak", "daily 00:00-24:00 UTC peak", "daily 00:00-24:00 UTC off-peak"],
)  # fmt: skip
def test_hours_that_cannot_be_read_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(ValueError, match=r"01:00-04:00|both peak and off-peak"):
        read_schedule(text)


NOW = at("2026-11-02T01:30:00")
HOLDS = [
    pytest.param(NOW, 24 * HOUR, 1000, None, True, id="a day ahead"),
    pytest.param(NOW, 24 * HOUR, 50_000, 1.0, False, id="so many lines that the cheap hours are too few"),
    pytest.param(NOW, 24 * HOUR, 50_000, 10.0, True, id="as many, at a rate that was measured"),
    pytest.param(NOW, 2 * HOUR, 1, None, False, id="the window ends within the peak"),
    pytest.param(NOW, 3 * HOUR, 1, None, True, id="half an hour is left after the peak"),
    pytest.param(NOW, 3 * HOUR, 6000, 4.0, False, id="half an hour is not enough"),
    pytest.param(at("2026-11-02T05:00:00"), 24 * HOUR, 1, None, False, id="off-peak"),
]


@pytest.mark.parametrize(("now", "window", "lines", "rate", "expected"), HOLDS)
def test_a_batch_waits_at_peak_unless_it_would_miss_its_window(
    now: float, window: int, lines: int, rate: float | None, expected: bool
) -> None:
    assert waits(DEEPSEEK, now, now + window, lines, rate) == expected


@given(st.integers(0, 3 * WEEK), st.integers(0, 2 * WEEK))
def test_cheap_time_is_what_counting_minute_by_minute_gives(start: int, length: int) -> None:
    schedule = Schedule("test", ((0, HOUR), (30 * HOUR, 40 * HOUR), (WEEK - HOUR, WEEK)))
    start, length = start // 1800 * 1800, length // 1800 * 1800
    counted = sum(1800 for moment in range(start, start + length, 1800) if not schedule.is_peak(moment))
    assert schedule.cheap_seconds(start, start + length) == counted


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 23), st.integers(1, 24)), min_size=1, max_size=6))
def test_peak_and_off_peak_are_each_others_complement(spans: list[tuple[int, int, int]]) -> None:
    days = "Mon Tue Wed Thu Fri Sat Sun".split()  # noqa: SIM905 - reads best
    text = "; ".join(f"{days[day]} {start:02}:00-{end:02}:00" for day, start, end in spans)
    try:
        peak = read_schedule(f"{text} UTC peak")
    except ValueError:
        return  # it was all of the week
    off_peak = read_schedule(f"{text} UTC off-peak")
    assert all(peak.is_peak(second) != off_peak.is_peak(second) for second in range(0, WEEK, 1800))


def test_the_health_page_shows_the_hours_and_when_they_open() -> None:
    hours = Backlog(DEEPSEEK, lambda: NOW).hours()
    assert hours is not None
    assert (hours["name"], hours["open"], hours["opens_at"]) == ("deepseek", False, int(NOW) + 2 * HOUR + HOUR // 2)
    assert hours["peak"][0] == "Mon 01:00 - Mon 04:00 UTC"
    assert Backlog(None, lambda: NOW).hours() is None


def test_a_backlog_counts_the_lines_of_all_batches_and_holds_only_those_it_knows() -> None:
    backlog = Backlog(DEEPSEEK, lambda: NOW)
    backlog.begin("a", int(NOW) + DAY, 10)
    backlog.begin("b", int(NOW) + 600, 5)
    backlog.done("a")
    assert backlog.lines == 14
    assert (backlog.holds("a", None), backlog.holds("b", None), backlog.holds("c", None)) == (True, False, False)
    backlog.end("a")
    assert (backlog.lines, backlog.is_off_peak()) == (5, False)
