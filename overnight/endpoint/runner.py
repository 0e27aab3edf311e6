"""Takes every open batch through its states: validating, in_progress, finalizing, then an end.

All state is in the store, so a batch goes on after a restart from whatever state a kill left it in. A slot goes to the
batch that asked for it first and each batch asks for one at a time, so open batches share the slots evenly.
"""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final

import msgspec

from overnight.endpoint.finish import write_result_files
from overnight.endpoint.lines import CANCELLED, EXPIRED, NumberedLine, input_lines, request_decoder, result_line
from overnight.endpoint.records import OPEN_STATUSES, Batch, StoredFile, new_id
from overnight.endpoint.store import Store
from overnight.endpoint.upstream import Upstream, answer_with_retries
from overnight.endpoint.validation import Problem, Rules, Verdict, validate

log: Final = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 10.0


class Runner:
    """Works on the open batches of a store with one upstream, on the event loop that it is started on."""

    def __init__(
        self, store: Store, upstream: Upstream, concurrency: int, grace_seconds: float, clock: Callable[[], float]
    ) -> None:
        self._store = store
        self._upstream = upstream
        self._grace_seconds = grace_seconds
        self._clock = clock
        self._slots = asyncio.Semaphore(concurrency)
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._interrupts: dict[str, asyncio.Event] = {}
        self._stopping = asyncio.Event()

    def start(self) -> None:
        """Go on with the batches that were open when the last server ended."""
        for batch in self._store.open_batches():
            self.submit(batch.id)

    def submit(self, batch_id: str) -> None:
        """Work on a batch until it ends."""
        self._interrupts[batch_id] = asyncio.Event()
        self._jobs[batch_id] = asyncio.create_task(self._work(batch_id))

    def cancel(self, batch_id: str) -> bool:
        """Ask an open batch to end, keeping what is done; return False when it is too late for that."""
        now = self._now()
        for status in ("in_progress", "validating"):
            if self._store.advance(batch_id, status, status="cancelling", cancelling_at=now):
                log.info("batch %s: %s → cancelling", batch_id, status)
                self._interrupts[batch_id].set()
                return True
        batch = self._store.batch(batch_id)
        return batch is not None and batch.status == "cancelling"

    async def stop(self) -> None:
        """Take no more lines, give those in flight their grace, and return."""
        self._stopping.set()
        for interrupt in self._interrupts.values():
            interrupt.set()
        if self._jobs:
            await asyncio.wait(self._jobs.values())

    async def _work(self, batch_id: str) -> None:
        while not self._stopping.is_set():
            try:
                if not await self._step(batch_id):
                    break
            except Exception:
                # A full disk heals, and an open batch must never be dropped: say it and try again.
                log.exception("batch %s: interrupted, trying again in %g s", batch_id, _RETRY_SECONDS)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stopping.wait(), _RETRY_SECONDS)
        del self._jobs[batch_id], self._interrupts[batch_id]

    async def _step(self, batch_id: str) -> bool:
        """Do what a batch's state asks for; return whether it is still open."""
        batch = self._store.batch(batch_id)
        if batch is None or batch.status not in OPEN_STATUSES:
            return False
        if batch.status == "validating":
            await self._validate(batch)
        elif batch.status == "in_progress" and batch.expires_at > self._clock():
            await self._run_lines(batch)
        elif batch.status == "in_progress":
            self._advance(batch, "finalizing", finalizing_at=self._now())
        else:
            await self._finish(batch)
        return True

    async def _validate(self, batch: Batch) -> None:
        path = self._store.path(batch.input_file_id)
        rules = Rules(batch.endpoint, self._upstream.model_ids)
        verdict = await asyncio.to_thread(_validate_file, path, rules)
        if verdict.problems:
            errors = msgspec.json.encode({"object": "list", "data": [_error(p) for p in verdict.problems]}).decode()
            self._advance(batch, "failed", errors=errors, failed_at=self._now())
        else:
            valid = {"total": verdict.requests, "model": verdict.model, "in_progress_at": self._now()}
            self._advance(batch, "in_progress", **valid)

    async def _run_lines(self, batch: Batch) -> None:
        in_flight = _InFlight(self._slots)
        producer = asyncio.create_task(self._produce(batch, in_flight))
        interrupted = asyncio.create_task(self._interrupts[batch.id].wait())
        left = batch.expires_at - self._clock()
        await asyncio.wait({producer, interrupted}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        all_done = producer.done()
        await _end(producer, interrupted)
        if in_flight.tasks:
            await asyncio.wait(in_flight.tasks, timeout=self._grace_seconds)
            await _end(*in_flight.tasks)
        if all_done:
            producer.result()
            self._advance(batch, "finalizing", finalizing_at=self._now())

    async def _produce(self, batch: Batch, in_flight: "_InFlight") -> None:
        finished = self._store.finished_lines(batch.id)
        with self._store.path(batch.input_file_id).open("rb") as stream:
            for line in input_lines(stream):
                if line.number not in finished:
                    in_flight.check()
                    await self._slots.acquire()
                    in_flight.start(self._run_line(batch.id, line))
        while in_flight.tasks:
            await asyncio.wait(in_flight.tasks)
        in_flight.check()

    async def _run_line(self, batch_id: str, line: NumberedLine) -> None:
        request = request_decoder.decode(line.data)
        outcome = await answer_with_retries(self._upstream, request.url, bytes(request.body))
        self._store.record(batch_id, line.number, result_line(request.custom_id, outcome))

    async def _finish(self, batch: Batch) -> None:
        if batch.total == 0:
            # Cancelled before it was validated: what the file holds is not known to be requests.
            self._advance(batch, "cancelled", cancelled_at=self._now())
            return
        output_id, error_id = new_id("file-"), new_id("file-")
        output, error = self._store.path(output_id), self._store.path(error_id)
        rest = CANCELLED if batch.status == "cancelling" else EXPIRED
        source, database = self._store.path(batch.input_file_id), self._store.database
        await asyncio.to_thread(write_result_files, source, database, batch.id, rest, output=output, error=error)
        self._close(batch, output, error)

    def _close(self, batch: Batch, output: Path, error: Path) -> None:
        now = self._now()
        written = [
            StoredFile(path.name, path.stat().st_size, now, f"{batch.id}_{kind}.jsonl", "batch_output")
            for path, kind in ((output, "output"), (error, "error"))
            if path.exists()
        ]
        end = _end_of(batch)
        changes = {
            "status": end,
            f"{end}_at": now,
            "output_file_id": output.name if output.exists() else None,
            "error_file_id": error.name if error.exists() else None,
        }
        self._store.close_batch(batch.id, batch.status, written, **changes)
        log.info("batch %s: %s → %s (%d done, %d failed of %d)", batch.id, batch.status, end, *_counts(batch))

    def _advance(self, batch: Batch, status: str, **changes: str | int | None) -> None:
        if self._store.advance(batch.id, batch.status, status=status, **changes):
            log.info("batch %s: %s → %s", batch.id, batch.status, status)

    def _now(self) -> int:
        return int(self._clock())


def _validate_file(path: Path, rules: Rules) -> Verdict:
    with path.open("rb") as stream:
        return validate(stream, path.stat().st_size, rules)


def _error(problem: Problem) -> dict[str, str | int | None]:
    return {"code": problem.code, "line": problem.line, "message": problem.message, "param": problem.param}


def _end_of(batch: Batch) -> str:
    """Return the end of a batch whose work is over: expired when lines are left, whatever the clock says by now."""
    if batch.status == "cancelling":
        return "cancelled"
    return "completed" if batch.finished >= batch.total else "expired"


def _counts(batch: Batch) -> tuple[int, int, int]:
    return batch.completed, batch.failed, batch.total


class _InFlight:
    """The lines of a batch that hold a slot, and whether the store refused one: then no more may be paid for."""

    def __init__(self, slots: asyncio.Semaphore) -> None:
        self._slots = slots
        self.tasks: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None

    def start(self, line: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(line)
        self.tasks.add(task)
        task.add_done_callback(self._done)

    def check(self) -> None:
        if self._fault:
            raise self._fault

    def _done(self, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        # Here, not in the line: a task that is cancelled before its first step never gets to a `finally`.
        self._slots.release()
        if not task.cancelled():
            self._fault = self._fault or task.exception()


async def _end(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    """Cancel what still runs and wait until nothing does."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
