"""Takes every open batch through its states: validating, in_progress, finalizing, then an end.

All state is in the store, so a batch goes on after a restart from whatever state a kill left it in.
"""

import asyncio
import contextlib
import logging
import traceback
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from overnight.endpoint.storage.lines import (
    CANCELLED,
    EXPIRED,
    Failure,
    NumberedLine,
    ResultLine,
    custom_id_of,
    request_decoder,
    result_line,
)
from overnight.endpoint.storage.recorder import Finished, Recorder
from overnight.endpoint.storage.records import OPEN_STATUSES, Batch, StoredFile, new_id
from overnight.endpoint.storage.store import Store
from overnight.endpoint.work.attempts import Attempts
from overnight.endpoint.work.backlog import Backlog
from overnight.endpoint.work.finish import write_result_files
from overnight.endpoint.work.gate import Gate, Slot
from overnight.endpoint.work.order import Order
from overnight.endpoint.work.validation import Problem, Rules, Verdict, validate

log: Final = logging.getLogger(__name__)

_RETRY_SECONDS: Final = 10.0
MOST_STARTED: Final = 512
"""Lines of one batch that run or wait to be tried again; memory holds no others."""


class Tools(NamedTuple):
    """What the runner works with."""

    store: Store
    recorder: Recorder
    backlog: Backlog
    gate: Gate
    attempts: Attempts
    observe: Callable[[ResultLine], None]
    """Told of every finished line."""
    clock: Callable[[], float]
    """Unix time."""


class Runner:
    """Works on the open batches of a store, on the event loop that it is started on."""

    def __init__(
        self,
        tools: Tools,
        models: frozenset[str] | None = None,
        grace_seconds: float = 10.0,
        keep_seconds: int | None = None,
    ) -> None:
        """Serve `models`, None where only the upstream knows; keep result files so long, None for ever."""
        self._store, self._recorder, self._backlog, self._gate, self._attempts, self._observe, self._clock = tools
        self._models, self._grace_seconds, self._keep_seconds = models, grace_seconds, keep_seconds
        self._jobs: dict[str, asyncio.Task[None]] = {}
        self._interrupts: dict[str, asyncio.Event] = {}
        self._stopping = asyncio.Event()

    @property
    def open_batches(self) -> int:
        """Batches that have not ended."""
        return len(self._jobs)

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
        return batch is not None and batch.status in {"cancelling", "cancelled"}

    async def stop(self) -> None:
        """Take no more lines, give those in flight their grace, and return."""
        self._stopping.set()
        for interrupt in self._interrupts.values():
            interrupt.set()
        jobs = list(self._jobs.values())
        if jobs:
            await asyncio.wait(jobs, timeout=self._grace_seconds + 1)
        # What could not be stored by now, on a full disk, is not waited for.
        await self._recorder.close()
        if jobs:
            await asyncio.wait(jobs)

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
        verdict = await asyncio.to_thread(_validate_file, path, Rules(batch.endpoint, self._models))
        if verdict.problems:
            errors = msgspec.json.encode({"object": "list", "data": [_error(p) for p in verdict.problems]}).decode()
            self._advance(batch, "failed", errors=errors, failed_at=self._now())
        else:
            hours = self._backlog.schedule.name if self._backlog.schedule else None
            valid = {"total": verdict.requests, "model": verdict.model, "in_progress_at": self._now()}
            self._advance(batch, "in_progress", **valid, off_peak=hours)

    async def _run_lines(self, batch: Batch) -> None:
        finished = self._store.finished_lines(batch.id)
        order = await asyncio.to_thread(_read_order, self._store.path(batch.input_file_id), finished)
        self._backlog.begin(batch.id, batch.expires_at, len(order))
        started = _Started()
        producer = asyncio.create_task(self._produce(batch, order, started))
        interrupted = asyncio.create_task(self._interrupts[batch.id].wait())
        left = batch.expires_at - self._clock()
        await asyncio.wait({producer, interrupted}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        all_done = producer.done()
        await _end(producer, interrupted)
        await _end(*started.idle())
        if started.tasks:
            await asyncio.wait(started.tasks, timeout=self._grace_seconds)
            await _end(*started.tasks)
        await self._recorder.settle()
        self._backlog.end(batch.id)
        self._gate.forget(batch.id)
        if all_done:
            producer.result()
            self._advance(batch, "finalizing", finalizing_at=self._now())

    async def _produce(self, batch: Batch, order: Order, started: "_Started") -> None:
        with self._store.path(batch.input_file_id).open("rb") as stream:
            for line in order.lines(stream):
                await started.room()
                slot = await self._gate.enter(batch.id)
                started.start(slot, self._run_line(batch.id, line, slot))
        await started.all_done()

    async def _run_line(self, batch_id: str, line: NumberedLine, slot: Slot) -> None:
        off_peak = self._backlog.is_off_peak()
        try:
            result = await self._answer(line, slot)
        except Exception as error:  # noqa: BLE001 - a batch that stopped at it would come to it, and pay, again and again
            # Without the error's own text, which may hold a prompt.
            log.error("batch %s: line %d fails: %s", batch_id, line.number, _fault(error))  # noqa: TRY400 - as said
            failure = Failure("server_error", f"The server failed on this line: {type(error).__name__}.")
            result = result_line(custom_id_of(line.data), failure)
        # The slot is held until the answer is on disk: a kill costs no more answers than there are slots.
        await self._recorder.record(Finished(batch_id, line.number, result, off_peak))
        self._backlog.done(batch_id)
        self._observe(result)

    async def _answer(self, line: NumberedLine, slot: Slot) -> ResultLine:
        request = request_decoder.decode(line.data)
        return result_line(request.custom_id, await self._attempts.answer(slot, request.url, bytes(request.body)))

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
        keep = batch.output_expires_after or self._keep_seconds
        expires_at = now + keep if keep else None
        written = [
            StoredFile(path.name, path.stat().st_size, now, f"{batch.id}_{kind}.jsonl", "batch_output", expires_at)
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


def _read_order(path: Path, finished: set[int]) -> Order:
    with path.open("rb") as stream:
        return Order(stream, finished)


def _fault(error: Exception) -> str:
    """Say what went wrong, and where."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"


def _error(problem: Problem) -> dict[str, str | int | None]:
    return {"code": problem.code, "line": problem.line, "message": problem.message, "param": problem.param}


def _end_of(batch: Batch) -> str:
    """Return the end of a batch whose work is over: expired when lines are left, whatever the clock says by now."""
    if batch.status == "cancelling":
        return "cancelled"
    return "completed" if batch.finished >= batch.total else "expired"


def _counts(batch: Batch) -> tuple[int, int, int]:
    return batch.completed, batch.failed, batch.total


class _Started:
    """The lines of a batch that were started and have not ended."""

    def __init__(self) -> None:
        self.tasks: dict[asyncio.Task[None], Slot] = {}
        self._room = asyncio.Semaphore(MOST_STARTED)
        self._fault: BaseException | None = None

    async def room(self) -> None:
        """Wait until one more may be started.

        Raises:
            BaseException: what a line failed with, such as a refusal of the store: then no more may be paid for.
        """
        await self._room.acquire()
        self._check()

    def start(self, slot: Slot, line: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(line)
        self.tasks[task] = slot
        task.add_done_callback(self._ended)

    def idle(self) -> list[asyncio.Task[None]]:
        """Return the lines that wait to be tried again: nothing of them is in flight."""
        return [task for task, slot in self.tasks.items() if not slot.held]

    async def all_done(self) -> None:
        while self.tasks:
            await asyncio.wait(self.tasks)
        self._check()

    def _check(self) -> None:
        if self._fault:
            raise self._fault

    def _ended(self, task: asyncio.Task[None]) -> None:
        # Here, not in the line: a task that is cancelled before its first step never gets to a `finally`.
        self.tasks.pop(task).release()
        self._room.release()
        if not task.cancelled():
            self._fault = self._fault or task.exception()


async def _end(*tasks: asyncio.Task[None] | asyncio.Task[bool]) -> None:
    """Cancel what still runs and wait until nothing does."""
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
