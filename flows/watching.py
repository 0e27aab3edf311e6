"""How far a run is, for whoever looks: a terminal's bar, a notebook's."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from overnight.ledger.run import Run
from overnight.reports.status import JobStatus, job_status, together

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
    runs = list(run.variants().values()) or [run]
    while not ended.wait(_LOOK_SECONDS):
        records = [run.ledger.job(one.job.name) for one in runs]
        built = [record for record in records if record is not None and record.built_at >= started]
        if built:
            each = [job_status(one.name, run.ledger.shards(one.name), one.requests, one.stopped) for one in built]
            show(together(run.job.name, each))
