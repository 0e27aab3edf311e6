"""How many lines run at once, how many per minute, and whose is next."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overnight.endpoint.work.gate import Gate, Report, next_batch
from overnight.endpoint.work.pace import MOST, Pace, Window, next_pace, outage_pause
from overnight.endpoint.work.quota import Quota


def window(answered: int = 100, refused: int = 0, failed: int = 0, latency: float = 1.0, full: bool = True) -> Window:
    """One second of work."""
    return Window(1.0, answered, refused, failed, latency, full)


TRIED = Pace(limit=16, base=8, rate=100, latency=1.0)
KNOWN = Pace(limit=8, base=8, rate=100, latency=1.0, doubling=False)
DECISIONS = [
    pytest.param(Pace(8, 8), window(), Pace(16, 8, 100, 1.0), id="the first rate is known: twice as many are tried"),
    pytest.param(TRIED, window(180), Pace(32, 16, 180, 1.0), id="more lines brought more: on"),
    pytest.param(TRIED, window(110), Pace(8, 8, 100, 1.0, False, 8), id="more lines brought nothing: back, and rest"),
    pytest.param(KNOWN, window(), Pace(10, 8, 100, 1.0, False), id="after a rest a quarter more is tried"),
    pytest.param(Pace(10, 8, 100, 1.0, False), window(107), Pace(12, 10, 107, 1.0, False), id="a little more is enough then"),
    pytest.param(Pace(8, 8, 100, 1.0, False, 3), window(97), Pace(8, 8, 97, 1.0, False, 2), id="resting"),
    pytest.param(KNOWN, window(50, latency=2.0), Pace(6, 6, 50, 2.0, False, 8), id="slower at the same limit: fewer"),
    pytest.param(KNOWN, window(50), Pace(10, 8, 50, 1.0, False), id="fewer answers, but not later ones: no sign of load"),
    pytest.param(Pace(20, 20), window(90, refused=10), Pace(14, 14, doubling=False, rest=4), id="429"),
    pytest.param(Pace(20, 16), window(90, refused=10), Pace(14, 14, doubling=False, rest=4), id="429 while more is tried"),
    pytest.param(Pace(20, 20), window(70, failed=30), Pace(14, 14, doubling=False, rest=4), id="many failures"),
    pytest.param(Pace(1, 1), window(0, failed=30), Pace(1, 1, doubling=False, rest=4), id="never less than one"),
    pytest.param(KNOWN, window(90, failed=10), Pace(10, 8, 90, 1.0, False), id="an upstream that always fails a little"),
    pytest.param(KNOWN, window(full=False), KNOWN, id="too little to do: nothing is learned"),
    pytest.param(Pace(MOST, MOST), window(), Pace(MOST, MOST, 100, 1.0), id="never more than the most"),
]  # fmt: skip


@pytest.mark.parametrize(("pace", "seen", "expected"), DECISIONS)
def test_the_limit_follows_what_the_upstream_bears(pace: Pace, seen: Window, expected: Pace) -> None:
    assert next_pace(pace, seen, MOST) == expected


def simulate(upstream: Callable[[int], Window], windows: int = 120) -> list[int]:
    """Return the limits over windows in which the upstream was used with as many lines as it was allowed."""
    pace, limits = Pace(8, 8), []
    for _ in range(windows):
        pace = next_pace(pace, upstream(pace.limit), MOST)
        limits.append(pace.limit)
    return limits[windows // 2 :]


def queueing(capacity: int) -> Callable[[int], Window]:
    """An upstream that works on `capacity` lines at once, each for a second; others wait in its queue."""
    return lambda limit: Window(10, 10 * min(limit, capacity), 0, 0, max(1.0, limit / capacity), True)


def refusing(most: int) -> Callable[[int], Window]:
    """An upstream that answers `most` lines at once in a second each, and refuses others with 429."""
    return lambda limit: Window(10, 10 * min(limit, most), 10 * max(0, limit - most), 0, 1.0, True)


@pytest.mark.parametrize("capacity", [16, 50, 200])
def test_an_upstream_that_queues_gets_about_as_many_lines_as_it_works_on(capacity: int) -> None:
    limits = simulate(queueing(capacity))
    assert 0.8 * capacity <= min(limits) <= max(limits) <= 1.6 * capacity


@pytest.mark.parametrize("most", [2, 12, 100])
def test_an_upstream_that_refuses_gets_nearly_what_it_takes_and_is_rarely_refused(most: int) -> None:
    limits = simulate(refusing(most))
    assert sum(limits) / len(limits) >= 0.6 * most
    assert max(limits) <= 1.6 * most + 1
    assert sum(limit > most for limit in limits) <= len(limits) / 3


@given(st.integers(1, 64), st.lists(st.tuples(*[st.integers(0, 200)] * 3, st.floats(0, 60)), max_size=40))
def test_whatever_happens_the_limit_stays_within_its_bounds(most: int, seen: list[tuple[int, int, int, float]]) -> None:
    pace = Pace(min(8, most), min(8, most))
    for answered, refused, failed, latency in seen:
        pace = next_pace(pace, Window(1.0, answered, refused, failed, latency, True), most)
        assert 1 <= pace.base <= pace.limit <= most


def test_an_outage_is_waited_for_ever_longer_up_to_half_a_minute() -> None:
    assert [outage_pause(failures) for failures in (0, 9, 10, 11, 13, 15, 99)] == [0, 0, 1, 2, 8, 30, 30]


@given(st.integers(1, 6000), st.lists(st.floats(0, 2), min_size=1, max_size=200))
def test_a_quota_is_never_exceeded_in_any_span_of_time(per_minute: int, pauses: list[float]) -> None:
    now, quota, taken = 0.0, Quota(per_minute, 0.0), []
    for pause in pauses:
        now += pause
        if quota.wait(now) == 0:
            quota.take(1, now)
            taken.append(now)
    burst = max(1.0, per_minute / 60)
    for count, start in enumerate(taken):
        assert len(taken) - count <= burst + (taken[-1] - start) * per_minute / 60 + 1e-6


def test_a_debt_of_tokens_is_paid_back_by_waiting() -> None:
    quota = Quota(600, 0.0)
    quota.take(110, 0.0)
    assert quota.wait(0.0) == pytest.approx(10.1)
    assert quota.wait(10.2) == 0


SHARES = [
    pytest.param(["a", "b"], {"a": 2, "b": 1}, {"a": 1, "b": 2}, "b", id="the fewest running"),
    pytest.param(["a", "b"], {}, {"a": 5, "b": 4}, "b", id="among equals the longest since served"),
    pytest.param(["a", "b"], {}, {}, "a", id="at first the older"),
    pytest.param(["a", "b"], {}, {"a": 1}, "b", id="never served before those that were"),
    pytest.param([], {}, {}, None, id="nobody waits"),
]


@pytest.mark.parametrize(("waiting", "running", "served", "expected"), SHARES)
def test_batches_share_fairly(
    waiting: list[str], running: dict[str, int], served: dict[str, int], expected: str
) -> None:
    assert next_batch(waiting, Counter(running), served) == expected


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


async def settled() -> None:
    """Lets everything that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_three_batches_get_the_slots_in_turns_and_a_stuck_one_keeps_only_its_own() -> None:
    async def scenario() -> None:
        gate, order = Gate(2, 2), []

        async def line(batch: str, stuck: bool) -> None:
            slot = await gate.enter(batch)
            order.append(batch)
            if not stuck:
                await asyncio.sleep(0)
                slot.release()

        lines = [asyncio.create_task(line(batch, batch == "stuck")) for batch in ["stuck"] + ["a", "b"] * 5]
        await settled()
        for _ in range(40):
            await asyncio.sleep(0)
        assert order == ["stuck"] + ["a", "b"] * 5
        assert gate.running == 1
        await asyncio.gather(*lines)

    run(scenario())


def test_retry_after_stops_everything_and_a_cancelled_line_gives_its_turn_back() -> None:
    async def scenario() -> None:
        clock = Clock()
        gate = Gate(2, 2, clock=clock)
        slot = await gate.enter("a")
        slot.settle(Report("refused", 0.1, retry_after=30.0))
        slot.release()
        waiting = asyncio.create_task(gate.enter("b"))
        await settled()
        assert (waiting.done(), gate.paused_seconds) == (False, 30.0)
        clock.now += 31
        gate.admit()
        waiting.cancel()
        await settled()
        assert (gate.running, waiting.cancelled()) == (0, True)

    run(scenario())


def test_a_line_that_is_tried_again_goes_before_new_ones() -> None:
    async def scenario() -> None:
        gate, order = Gate(1, 1), []
        slot = await gate.enter("a")
        slot.release()
        other = await gate.enter("b")

        async def line(name: str, turn: Coroutine[Any, Any, Any]) -> None:
            await turn
            order.append(name)
            gate.leave("a")

        new = asyncio.create_task(line("new", gate.enter("a")))
        await settled()
        again = asyncio.create_task(line("again", slot.regain()))
        await settled()
        other.release()
        await asyncio.gather(new, again)
        assert order == ["again", "new"]

    run(scenario())


def test_a_quota_of_requests_holds_lines_back_and_a_closed_gate_all_of_them() -> None:
    async def scenario() -> None:
        clock = Clock()
        gate = Gate(8, 8, rpm=60, clock=clock)
        first = await gate.enter("a")
        second = asyncio.create_task(gate.enter("a"))
        await settled()
        assert not second.done()
        clock.now += 1
        gate.closed = "the disk is full"
        gate.admit()
        await settled()
        assert not second.done()
        gate.closed = None
        gate.admit()
        (await second).release()
        first.release()

    run(scenario())


def test_the_tokens_of_answers_are_charged_before_the_next_line() -> None:
    async def scenario() -> None:
        clock = Clock()
        gate = Gate(8, 8, tpm=6000, clock=clock)
        slot = await gate.enter("a")
        slot.settle(Report("answered", 1.0), tokens=1100)
        slot.release()
        late = asyncio.create_task(gate.enter("a"))
        await settled()
        assert not late.done()
        clock.now += 10.1
        gate.admit()
        (await late).release()

    run(scenario())
