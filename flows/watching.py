"""How far a run is, for whoever looks: a terminal's bar, a notebook's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overnight.ledger.run import Run
from overnight.reports.status import JobStatus, job_status

_LOOK_SECONDS = 0.3


@contextmanager
def watched(run: Run, show: Callable[[JobStatus], None]) -> Iterator[None]:
    """Has shown how far a run is, again and again, while the block runs."""
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(run, show, ended), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _watch(run: Run, show: Callable[[JobStatus], None], ended: threading.Event) -> None:
    started = time.time()
    while not ended.wait(_LOOK_SECONDS):
        record = run.ledger.job(run.job.name)
        if record is not None and record.built_at >= started:
            show(job_status(run.job.name, run.ledger.shards(run.job.name), record.requests, record.stopped))
