"""Sending a line until it has an answer worth keeping."""

import asyncio
import random
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from overnight.endpoint.storage.lines import Answer, Failure, usage_of
from overnight.endpoint.upstream.upstream import UnusableAnswerError, Upstream, UpstreamError, UpstreamTimeoutError
from overnight.endpoint.work.gate import LONGEST_PAUSE, Report, Slot

MAX_ATTEMPTS: Final = 5
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0


def is_retryable(status: int) -> bool:
    """Whether the same request may fare better later."""
    return status in {408, 409, 429} or status >= 500


def retry_delay(attempt: int, retry_after: float | None, jitter: float) -> float:
    """Return the seconds to wait after failed attempt number `attempt` (from 1); `jitter` is from 0 to 1.

    An upstream that says how long is believed, up to LONGEST_PAUSE; else the delay doubles, spread over its upper half.
    """
    if retry_after is not None:
        return min(LONGEST_PAUSE, retry_after) + jitter * _FIRST_DELAY_SECONDS
    delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** (attempt - 1))
    return delay * (0.5 + jitter / 2)


class Attempt(NamedTuple):
    """How one attempt ended, and the seconds to wait that its headers ask for before another."""

    outcome: Answer | Failure
    retry_after: float | None = None
    final: bool = False
    """Whether another attempt would be no better."""


def report_of(attempt: Attempt, seconds: float) -> Report:
    """Say what an attempt tells about the upstream."""
    outcome, retry_after, final = attempt
    if isinstance(outcome, Failure) or outcome.status_code >= 500:
        return Report("answered" if final else "failed", seconds, retry_after)
    return Report("refused" if outcome.status_code == 429 else "answered", seconds, retry_after)


class Attempts:
    """Sends lines to one upstream, each up to MAX_ATTEMPTS times."""

    def __init__(self, upstream: Upstream, observe: Callable[[Report], None]) -> None:
        """Tell `observe` of every attempt."""
        self._upstream, self._observe = upstream, observe

    async def answer(self, slot: Slot, path: str, body: bytes) -> Answer | Failure:
        """Return the first answer that is worth keeping, or the last failure; the slot is held at the end.

        It is given back while a line waits to be tried again, so that such lines hold up no other.
        """
        attempt = 1
        while True:
            outcome, retry_after, final = await self._attempt(slot, path, body)
            if final or attempt == MAX_ATTEMPTS:
                return outcome
            slot.release()
            await asyncio.sleep(retry_delay(attempt, retry_after, random.random()))  # noqa: S311 - spreads retries only
            await slot.regain()
            attempt += 1

    async def _attempt(self, slot: Slot, path: str, body: bytes) -> Attempt:
        began = time.monotonic()
        tried = await self._try(path, body)
        report = report_of(tried, time.monotonic() - began)
        counted = slot.counts_tokens and isinstance(tried.outcome, Answer) and tried.outcome.body
        tokens = usage_of(counted).total_tokens if counted else 0
        slot.settle(report, tokens)
        self._observe(report)
        return tried

    async def _try(self, path: str, body: bytes) -> Attempt:
        try:
            answer, retry_after = await self._upstream.send(path, body)
        except UpstreamTimeoutError as error:
            return Attempt(Failure("request_timeout", str(error)))
        except UpstreamError as error:
            return Attempt(Failure("upstream_error", str(error)), final=isinstance(error, UnusableAnswerError))
        return Attempt(answer, retry_after, final=not is_retryable(answer.status_code))
