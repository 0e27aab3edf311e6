"""When the next line may run, and whose: the limit, quotas, pauses, and a fair share between batches."""

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Final, Literal, NamedTuple

from overnight.endpoint.work.pace import Pace, Window, is_over, next_pace, outage_pause
from overnight.endpoint.work.quota import Quota

log: Final = logging.getLogger(__name__)

LONGEST_PAUSE: Final = 3600.0
"""An upstream that asks for more patience than this is asked again all the same."""
_RECHECK_SECONDS: Final = 5.0


class Report(NamedTuple):
    """What an attempt says about the upstream."""

    kind: Literal["answered", "refused", "failed"]
    """Refused is a 429; failed a 5xx, a timeout or no connection."""
    seconds: float
    retry_after: float | None = None


class Slot:
    """A line's right to run; given back once, whatever happens to the line."""

    def __init__(self, gate: "Gate", batch_id: str, charged: float) -> None:
        self._gate, self._batch_id, self._charged = gate, batch_id, charged
        self.held = True

    @property
    def counts_tokens(self) -> bool:
        """Whether `settle` has to be told the tokens."""
        return self._gate.counts_tokens

    def settle(self, report: Report, tokens: int = 0) -> None:
        """Say how the attempt went, and correct the quota by what it used; the slot is kept."""
        self._gate.settle(report, tokens, self._charged)

    def release(self) -> None:
        """Give it back."""
        if self.held:
            self.held = False
            self._gate.leave(self._batch_id)

    async def regain(self) -> None:
        """Wait for it again, before lines that have not run yet."""
        self._charged = await self._gate.wait(self._batch_id, first=True)
        self.held = True


def next_batch(waiting: Iterable[str], running: Counter[str], served: dict[str, int]) -> str | None:
    """Choose whose line runs next: of the batches that wait, the one with the fewest running.

    Among equals it is the one that was served longest ago, and one that never was comes first; `waiting` is in the
    order of creation, which decides the rest.
    """
    return min(waiting, key=lambda batch: (running[batch], served.get(batch, -1)), default=None)


class Gate:
    """Lets lines run; belongs to one event loop."""

    def __init__(
        self,
        first: int,
        most: int,
        *,
        rpm: int | None = None,
        tpm: int | None = None,
        held: Callable[[str, float | None], bool] = lambda *_: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start with `first` lines at once and go up to `most`.

        `held` says, given the rate, that a batch has to stand still.
        """
        self._pace, self._most, self._held, self._clock = Pace(first, first), most, held, clock
        self._requests = Quota(rpm, clock()) if rpm else None
        self._tokens = Quota(tpm, clock()) if tpm else None
        self.counts_tokens = tpm is not None
        self._waiting: dict[str, deque[asyncio.Future[float]]] = {}
        self._running: Counter[str] = Counter()
        self.running = 0
        """Lines that run."""
        self._served: dict[str, int] = {}
        self._ticks = 0
        self._paused_until = 0.0
        self._failures = 0
        self._mean_tokens = 0.0
        self._wake: asyncio.TimerHandle | None = None
        self.closed: str | None = None
        """Why nothing may run at all; None when it may."""
        self.rate: float | None = None
        """Answers per second when there was enough to do, as last measured."""
        self._start_window()

    @property
    def limit(self) -> int:
        """Lines that may run at once."""
        return self._pace.limit

    @property
    def paused_seconds(self) -> float:
        """Seconds until the upstream is asked again."""
        return max(0.0, self._paused_until - self._clock())

    def forget(self, batch_id: str) -> None:
        """Drop what is known of a batch that has ended."""
        for known in (self._waiting, self._served, self._running):
            known.pop(batch_id, None)

    async def enter(self, batch_id: str) -> Slot:
        """Wait until a line of the batch may run."""
        return Slot(self, batch_id, await self.wait(batch_id, first=False))

    async def wait(self, batch_id: str, *, first: bool) -> float:
        """Wait in the batch's queue, at its head or its end; return the tokens that the quota is charged with."""
        queue = self._waiting.setdefault(batch_id, deque())
        turn: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        if first:
            queue.appendleft(turn)
        else:
            queue.append(turn)
        self.admit()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                if turn in queue:
                    queue.remove(turn)
            else:
                self.leave(batch_id)
            raise

    def leave(self, batch_id: str) -> None:
        """Count a line as ended, or as waiting to be tried again."""
        self.running -= 1
        self._running[batch_id] -= 1
        self.admit()

    def settle(self, report: Report, tokens: int, charged: float) -> None:
        """Learn from an attempt that used `tokens` and was charged with an estimate."""
        if self._tokens:
            self._tokens.take(tokens - charged, self._clock())
        if tokens:
            self._mean_tokens += (tokens - self._mean_tokens) / 8 if self._mean_tokens else tokens
        self._reports[report.kind] += 1
        self._failures = self._failures + 1 if report.kind != "answered" else 0
        if report.kind == "answered":
            self._answer_seconds += report.seconds
        self._pause(report)
        window = self._window()
        if is_over(window, self._pace.limit):
            self._decide(window)

    def admit(self) -> None:
        """Let lines run while they may."""
        while any(self._waiting.values()):
            if self.running >= self._pace.limit:
                self._was_full = True
                return
            now = self._clock()
            if delay := self._delay(now):
                self._admit_in(delay)
                return
            batch_id = next_batch(self._eligible(), self._running, self._served)
            if batch_id is None:
                self._admit_in(_RECHECK_SECONDS)
                return
            turn = self._waiting[batch_id].popleft()
            if not turn.done():
                self._start(batch_id, now)
                turn.set_result(self._mean_tokens)

    def _start(self, batch_id: str, now: float) -> None:
        self._ticks += 1
        self._served[batch_id] = self._ticks
        self.running += 1
        self._running[batch_id] += 1
        if self._requests:
            self._requests.take(1, now)
        if self._tokens:
            self._tokens.take(self._mean_tokens, now)

    def _eligible(self) -> list[str]:
        return [batch for batch, queue in self._waiting.items() if queue and not self._held(batch, self.rate)]

    def _delay(self, now: float) -> float:
        if self.closed:
            return _RECHECK_SECONDS
        quotas = (quota.wait(now) for quota in (self._requests, self._tokens) if quota)
        return max(self._paused_until - now, *quotas, 0.0)

    def _admit_in(self, seconds: float) -> None:
        if self._wake:
            self._wake.cancel()
        self._wake = asyncio.get_running_loop().call_later(seconds, self.admit)

    def _pause(self, report: Report) -> None:
        if report.kind == "answered":
            return
        asked = report.retry_after
        seconds = min(LONGEST_PAUSE, asked) if asked is not None else outage_pause(self._failures)
        until = self._clock() + seconds
        if seconds and until > self._paused_until:
            self._paused_until = until
            if seconds >= 1:
                why = "asked for it" if asked is not None else f"failed {self._failures} times in a row"
                log.warning("the upstream %s: nothing is sent for %.0f s", why, seconds)

    def _decide(self, window: Window) -> None:
        if window.full and window.answered:
            self.rate = window.answered / window.seconds
        before, self._pace = self._pace.limit, next_pace(self._pace, window, self._most)
        if self._pace.limit != before:
            log.debug("%d lines at once, after %d: %s", self._pace.limit, before, window)
        self._start_window()
        self.admit()

    def _start_window(self) -> None:
        self._reports: Counter[str] = Counter()
        self._answer_seconds, self._was_full, self._window_began = 0.0, False, self._clock()

    def _window(self) -> Window:
        answered, refused, failed = (self._reports[kind] for kind in ("answered", "refused", "failed"))
        seconds = self._clock() - self._window_began
        return Window(seconds, answered, refused, failed, self._answer_seconds / max(1, answered), self._was_full)
