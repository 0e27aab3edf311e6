"""Ten times the rows: does the time per row, and the memory, stay? And two processes against one, and small changes.

    python -m tests.benchmarks.scale [--rows 1000000] [--large 10000000] [--nights 365]

Short rows, made results, each measurement in a process of its own; memory is the highest sum over all processes of the
measurement, looked at ten times a second. Everything is a ratio in one run. The dataset of ten million rows, its requests and
its results take about 25 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from tests.benchmarks import stages

_WORDS = 12
"""Of a row's text: about 70 bytes."""
_ADDED = 100
_LOOK_SECONDS = 0.1


class Measured(NamedTuple):
    """One piece of work."""

    seconds: float
    cpu: float
    """Seconds of the measured process and of those that it waited for."""
    peak_mb: float = 0.0
    """Highest resident memory of all of them at one moment, in MiB."""


def main() -> None:
    """Runs everything and prints Markdown."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=1_000_000)
    options.add_argument("--large", type=int, default=10_000_000)
    options.add_argument("--nights", type=int, default=365)
    options.add_argument("--one", nargs=2, metavar=("WORK", "FOLDER"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        measure(given.one[0], Path(given.one[1]))
        return
    with tempfile.TemporaryDirectory() as made:
        compare(Path(made), [given.rows, given.large] if given.large else [given.rows])
        largest = given.large or given.rows
        add_rows(Path(made) / str(largest))
        done = in_process("add", Path(made) / str(largest))
        say(f"\n{_ADDED} rows more than {largest:,} answered ones: {done.cpu:.0f} s of CPU, {done.peak_mb:.0f} MiB")
    with tempfile.TemporaryDirectory() as made:
        done = in_process(f"sweep {given.nights}", Path(made))
        say(f"a sweep with nothing to do after {given.nights} nights: {done.seconds:.2f} s")


def say(text: str) -> None:
    """Prints at once: a run takes a quarter of an hour."""
    print(text, flush=True)  # noqa: T201 - it is the output


def compare(folder: Path, sizes: list[int]) -> None:
    """Measures the stages on datasets: rows/s, against those of the first one, and of one process."""
    say("| work | rows | rows/s | of the smaller | of one process | peak MiB |\n| --- | --- | --- | --- | --- | --- |")
    rates: dict[tuple[str, int], float] = {}
    for count in sizes:
        stages.make_dataset(folder / str(count), count, words=_WORDS)
        for work in STAGES:
            done = in_process(work, folder / str(count))
            rates[work, count] = count / done.seconds
            smaller = f"{rates[work, count] / rates[work, sizes[0]]:.2f}" if count != sizes[0] else "–"
            one, spread = work.split(" ")[0], work.endswith("processes")
            alone = f"{rates[work, count] / rates[one, count]:.2f}" if spread else "–"
            say(f"| {work} | {count:,} | {rates[work, count]:,.0f} | {smaller} | {alone} | {done.peak_mb:.0f} |")


def in_process(work: str, folder: Path) -> Measured:
    """Measures in a fresh process, and watches it from the moment that it is prepared."""
    command = [sys.executable, "-m", "tests.benchmarks.scale", "--one", work, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        peak, watched = 0.0, psutil.Process(child.pid)
        while child.poll() is None:
            peak = max(peak, _resident_mb(watched))
            time.sleep(_LOOK_SECONDS)
        told = child.stdout.readline()
    if child.returncode:
        sys.exit(f"{work} failed")
    return Measured(*json.loads(told))._replace(peak_mb=peak)


def _resident_mb(process: psutil.Process) -> float:
    total = 0.0
    with suppress(psutil.Error):
        for one in (process, *process.children(recursive=True)):
            with suppress(psutil.Error):
                total += one.memory_info().rss
    return total / 2**20


def measure(work: str, folder: Path) -> None:
    """Prepares, says so, works, and prints what it took."""
    name, _, number = work.partition(" ")
    prepared = _sweep(folder, int(number)) if name == "sweep" else STAGES.get(work, _add)(folder)
    say("ready")
    started, before = time.perf_counter(), _cpu()
    prepared()
    say(json.dumps([time.perf_counter() - started, _cpu() - before]))


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def add_rows(folder: Path) -> None:
    """Appends rows to the dataset, as a program does that writes the table anew: groups of rows of the same size."""
    import pyarrow as pa  # noqa: PLC0415 - not in the processes that are measured
    import pyarrow.parquet as pq  # noqa: PLC0415

    path, longer = folder / "dataset.parquet", folder / "longer.parquet"
    with pq.ParquetFile(path) as old, pq.ParquetWriter(longer, old.schema_arrow) as new:
        for number in range(old.num_row_groups):
            new.write_table(old.read_row_group(number))
        texts = [f"new {number}" for number in range(_ADDED)]
        new.write_table(pa.table([list(range(_ADDED)), texts, texts], schema=old.schema_arrow))
    longer.replace(path)


def _add(folder: Path) -> Callable[[], Any]:
    """A build of a dataset of which all but some rows are answered."""
    from overnight.builds.staging import stage  # noqa: PLC0415

    run = stages._run(folder)
    now = time.time()
    run.ledger.acquire(run.job.name, "benchmark", now, now + 3600)
    for shard in (one for one in run.ledger.shards(run.job.name) if not one.settled):
        outcome = {"verdicts": {"succeeded": shard.requests}, "usage": {}}
        run.ledger.settle(shard.batches[-1], now, outcome, [], run.job.name)
    run.ledger.release(run.job.name, "benchmark")

    def build() -> None:
        made = stage(run)
        if made.requests - made.known != _ADDED:
            raise AssertionError(made)

    return build


def _sweep(folder: Path, nights: int) -> Callable[[], Any]:
    """What `collect` asks of a job that ran every night, and has nothing left to do."""
    from flows.collect import done  # noqa: PLC0415
    from flows.pipeline import Pipeline  # noqa: PLC0415
    from overnight.ledger.records import JobRecord, NewShard  # noqa: PLC0415
    from overnight.ledger.run import recorded_run  # noqa: PLC0415
    from overnight.ledger.states import State  # noqa: PLC0415
    from overnight.reports.status import status_of  # noqa: PLC0415

    stages.make_dataset(folder / "data", 10)
    run = stages._run(folder / "data")
    ledger, name, now = run.ledger, run.job.name, time.time()
    ledger.acquire(name, "benchmark", now, now + 3600)
    for night in range(1, nights + 1):
        shard = NewShard(
            round=night,
            number=0,
            key=f"{night:032x}",
            requests=100,
            bytes=50_000,
            tokens=12_000,
            model="m",
            url="/v1/chat/completions",
            provider="p",
        )
        ledger.plan(JobRecord(name, run.job.model_dump(mode="json", by_alias=True), {}, "", 100, 100, now), [shard])
        planned = ledger.shards(name)[-1]
        batch = ledger.move(ledger.start_attempt(planned.id, now), State.UPLOADED, file_id=f"file-{night}")
        batch = ledger.move(ledger.begin_create(batch, "benchmark", now), State.SUBMITTED, batch_id=f"batch-{night}")
        ledger.end(batch, status="completed", ended_at=now)
        batch = ledger.shard(planned.id).batches[0]
        ledger.settle(batch, now, {"verdicts": {"succeeded": 100}, "usage": {}}, [], name)
    ledger.joined(name, now, 1.0)
    ledger.release(name, "benchmark")

    def sweep() -> None:
        pipeline = Pipeline(recorded_run(name, run.home))
        if not done(pipeline) or not status_of(pipeline.run).done:
            raise AssertionError(name)

    return sweep


STAGES: dict[str, Callable[[Path], Callable[[], Any]]] = {
    "build": stages.STAGES["build", "overnight"],
    "build in processes": stages.STAGES["build", "processes"],
    "parse": stages.STAGES["parse", "overnight"],
    "parse in processes": stages.STAGES["parse", "processes"],
    "join": stages.STAGES["join", "overnight"],
}

if __name__ == "__main__":
    main()
