"""Build, validate, parse and join against the guide's plain-Python way: rows/s, ratio, peak memory.

    python -m tests.benchmarks.stages [--rows 200000] [--rounds 3] [--large 2000000]

Every measurement is a process of its own; the ways take turns, and the median of the rounds counts. Times differ between
machines; the ratios hold. `--large` repeats overnight's stages on more rows, to show that memory stays.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

WORDS = 'the a kettle lamp works breaks quickly très günstig 好 price "quoted" 🙂 it\'s'.split()  # noqa: SIM905 - reads best
JOB = {
    "name": "bench",
    "task": {
        "kind": "generate",
        "system": "Classify the text as one of: positive, negative.",
        "prompt": "{{ title }}\n{{ text }}",
    },
    "model": "some-model",
    "parameters": {"max_tokens": 64, "temperature": 0},
    "provider": {"profile": "custom", "base_url": "http://127.0.0.1:9/v1"},
}


class Measured(NamedTuple):
    """One stage done one way."""

    seconds: float
    peak_mb: float
    """Highest resident memory of the process, in MiB."""


def main() -> None:
    """Runs everything and prints a Markdown table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--large", type=int, default=0)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--one", nargs=3, metavar=("STAGE", "WAY", "FOLDER"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        stage, way, folder = given.one
        print(json.dumps(measure(stage, way, Path(folder))))  # noqa: T201 - read by the parent
        return
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder) / "small", given.rows, ("plain", "overnight"), given.rounds)
        if given.large:
            compare(Path(folder) / "large", given.large, ("overnight",), 1)


def compare(folder: Path, rows: int, ways: tuple[str, ...], rounds: int) -> None:
    """Measures all stages on new data and prints them."""
    make_dataset(folder, rows)
    print(f"\n{rows:,} rows\n\n| stage | way | rows/s | ratio | peak MiB |\n| --- | --- | --- | --- | --- |")  # noqa: T201
    for stage in ("build", "validate", "parse", "join"):
        taken: dict[str, list[Measured]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way in ways:
                taken[way].append(in_process(stage, way, folder))
        seconds = {way: statistics.median(one.seconds for one in taken[way]) for way in ways}
        for way in ways:
            ratio = f"{seconds[ways[0]] / seconds[way]:.1f}" if len(ways) > 1 else "–"
            peak = max(one.peak_mb for one in taken[way])
            print(f"| {stage} | {way} | {rows / seconds[way]:,.0f} | {ratio} | {peak:.0f} |", flush=True)  # noqa: T201


def in_process(stage: str, way: str, folder: Path) -> Measured:
    """Measures in a fresh process."""
    command = [sys.executable, "-m", "tests.benchmarks.stages", "--one", stage, way, str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return Measured(*json.loads(done.stdout.splitlines()[-1]))


def measure(stage: str, way: str, folder: Path) -> Measured:
    """Runs one stage; imports and preparation do not count."""
    if way == "overnight":
        from flows.shell import spare_pandas  # noqa: PLC0415 - as a command does

        spare_pandas()
    run = STAGES[stage, way](folder)
    started = time.perf_counter()
    run()
    seconds = time.perf_counter() - started
    return Measured(seconds, peak_mb())


def peak_mb() -> float:
    """Highest resident memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # rusage also counts what the parent had before it started this program
        return int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 / 1024


def make_dataset(folder: Path, rows: int, words: int = 65) -> None:
    """Rows of about 400 bytes of varied text, or of fewer words."""
    import pyarrow as pa  # noqa: PLC0415 - not in the processes that are measured
    import pyarrow.parquet as pq  # noqa: PLC0415

    folder.mkdir()
    chosen = random.Random(7)
    schema = pa.schema([("id", pa.int64()), ("title", pa.string()), ("text", pa.string())])
    with pq.ParquetWriter(folder / "dataset.parquet", schema) as writer:
        for start in range(0, rows, 10_000):
            ids = range(start, min(start + 10_000, rows))
            texts = [" ".join(chosen.choices(WORDS, k=words)) for _ in ids]
            writer.write_table(pa.table([list(ids), [f"Review {n}" for n in ids], texts], schema=schema))


def output_line(custom_id: str, number: int) -> bytes:
    """A result line of about 800 bytes, as OpenAI writes it."""
    body = {
        "id": f"chatcmpl-{number:024d}", "object": "chat.completion", "created": 1_790_000_000 + number,
        "model": "some-model-2026-08-01",
        "choices": [{"index": 0, "message": {
            "role": "assistant", "content": f"Überraschend gut 🙂: answer {number}, \"as asked\". " * 3,
            "tool_calls": None, "refusal": None, "annotations": []}, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 120 + number % 9, "completion_tokens": 20, "total_tokens": 140,
                  "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                  "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0}},
        "service_tier": "default", "system_fingerprint": "fp_0123456789",
    }  # fmt: skip
    response = {"status_code": 200, "request_id": f"req_{number:032d}", "body": body}
    line = {"id": f"batch_req_{number:024d}", "custom_id": custom_id, "response": response, "error": None}
    return json.dumps(line, ensure_ascii=False).encode() + b"\n"


def _run(folder: Path) -> Any:
    from overnight.ledger.run import open_run  # noqa: PLC0415 - only the measured way is imported

    os.environ["OVERNIGHT_HOME"] = str(folder / "home")
    return open_run({**JOB, "dataset": {"path": str(folder / "dataset.parquet")}})


def _overnight_build(folder: Path) -> Callable[[], Any]:
    from overnight.builds.staging import stage  # noqa: PLC0415

    run = _run(folder)
    os.environ.setdefault("OVERNIGHT_RUNNER", "threads")
    return lambda: stage(run)


def _spread_build(folder: Path) -> Callable[[], Any]:
    os.environ["OVERNIGHT_RUNNER"] = "processes"
    return _overnight_build(folder)


def _built(folder: Path) -> Any:
    """The build's shards, kept from one process to the next."""
    import msgspec  # noqa: PLC0415

    from overnight.builds.staging import stage  # noqa: PLC0415
    from overnight.ledger.records import NewShard  # noqa: PLC0415

    run = _run(folder)
    kept = folder / "build.json"
    if not kept.exists():
        kept.write_bytes(msgspec.json.encode(stage(run).shards))
    return run, msgspec.json.decode(kept.read_bytes(), type=list[NewShard])


def _overnight_validate(folder: Path) -> Callable[[], Any]:
    from overnight.rows.rules import check_lines  # noqa: PLC0415

    run, pairs = _in_child(folder)
    names = [requests.name for requests, _ in pairs]

    def check() -> None:
        for name in names:
            with (run.folder.staging / name).open("rb") as lines:
                problems = list(check_lines(name, lines, run.job.profile))
            if problems:
                raise AssertionError(problems[0])

    return check


def _outputs(folder: Path) -> tuple[Any, list[tuple[Path, Path]]]:
    """Request files and an output file for each, in another order than the requests."""
    from overnight.rows.lines import custom_ids  # noqa: PLC0415

    run, shards = _built(folder)
    pairs = []
    for number, name in enumerate(shard.file_name for shard in shards):
        output = folder / f"{name}.output"
        if not output.exists():
            ids = list(custom_ids(run.folder.staging / name))
            random.Random(number).shuffle(ids)
            with output.open("wb") as stream:
                stream.writelines(output_line(custom_id, at) for at, custom_id in enumerate(ids))
        pairs.append((run.folder.staging / name, output))
    return run, pairs


def _attempts(folder: Path) -> Any:
    """The job as its ledger has it once its batches have ended: the run, and its shards with their attempt each."""
    from overnight.job.prompt import definition_of  # noqa: PLC0415
    from overnight.ledger.records import JobRecord  # noqa: PLC0415
    from overnight.ledger.states import State  # noqa: PLC0415
    from overnight.store.parquet import notes_of  # noqa: PLC0415

    run, pairs = _in_child(folder)
    ledger, name = run.ledger, run.job.name
    if ledger.job(name) is None:
        shutil.copy(run.folder.staging / "rows.parquet", run.folder.rows(None))
        rows = run.rows()
        count = sum(batch.num_rows for batch in rows.batches())
        now, token = time.time(), notes_of(run.folder.rows(None))["build"].decode()
        record = JobRecord(name, {}, definition_of(run.job), rows.fingerprint, count, count, now, build=token)
        ledger.plan(record, _built(folder)[1])
        ledger.acquire(name, "benchmark", now, now + 3600)
        for shard in ledger.shards(name):
            batch = ledger.move(ledger.start_attempt(shard.id, now), State.UPLOADED, file_id=f"file-{shard.id}")
            batch = ledger.begin_create(batch, "benchmark", now)
            batch = ledger.move(batch, State.SUBMITTED, batch_id=f"batch-{shard.id}")
            ledger.end(batch, status="completed", ended_at=now)
    return run, ledger.shards(name), pairs


def _overnight_parse(folder: Path) -> Callable[[], Any]:
    from overnight.answers.reconcile import reconcile  # noqa: PLC0415
    from overnight.answers.responses import ResponseFiles  # noqa: PLC0415
    from overnight.answers.results import part_name  # noqa: PLC0415
    from overnight.job.prompt import answer_of  # noqa: PLC0415

    run, shards, pairs = _attempts(folder)

    def parse_all() -> None:
        for shard, (requests, output) in zip(shards, pairs, strict=True):
            (batch,) = shard.batches
            part = run.folder.results / part_name(shard, batch)
            reconcile(ResponseFiles(batch, output, None), requests, part, answer_of(run.job))

    return parse_all


def _overnight_spread(folder: Path) -> Callable[[], Any]:
    """The same in a process for each core."""
    from overnight.answers.reading import Reading, read  # noqa: PLC0415
    from overnight.answers.responses import ResponseFiles  # noqa: PLC0415
    from overnight.answers.results import part_name  # noqa: PLC0415
    from overnight.job.prompt import answer_of  # noqa: PLC0415
    from overnight.store.spread import spread  # noqa: PLC0415

    run, shards, pairs = _attempts(folder)
    readings = []
    for shard, (requests, output) in zip(shards, pairs, strict=True):
        (batch,) = shard.batches
        part = run.folder.results / part_name(shard, batch)
        readings.append(Reading(ResponseFiles(batch, output, None), requests, part, answer_of(run.job), None, run.home))
    return lambda: list(spread(read, readings, "processes"))


def _in_child(folder: Path) -> tuple[Any, list[tuple[Path, Path]]]:
    """Prepares the files in a child, so that making them does not count as this process' memory."""
    child = os.fork()
    if child == 0:
        _outputs(folder)
        os._exit(0)
    os.waitpid(child, 0)
    return _outputs(folder)


def _overnight_join(folder: Path) -> Callable[[], Any]:
    from tasks.join import join  # noqa: PLC0415

    run, shards, _ = _attempts(folder)
    for shard in shards:
        if not shard.settled:
            outcome = {"verdicts": {"succeeded": shard.requests}, "usage": {}}
            run.ledger.settle(shard.batches[0], time.time(), outcome, [], run.job.name)
    return lambda: join(run)


def _plain_requests(folder: Path) -> Path:
    requests = folder / "plain.jsonl"
    if not requests.exists():
        from tests.benchmarks import plain  # noqa: PLC0415

        child = os.fork()
        if child == 0:
            plain.build(folder / "dataset.parquet", requests)
            os._exit(0)
        os.waitpid(child, 0)
    return requests


def _plain_output(folder: Path) -> Path:
    merged = folder / "plain.output"
    if not merged.exists():
        with merged.open("wb") as stream:
            for _, output in _in_child(folder)[1]:
                with output.open("rb") as part:
                    shutil.copyfileobj(part, stream)
    return merged


def _plain(stage: str) -> Callable[[Path], Callable[[], Any]]:
    def prepare(folder: Path) -> Callable[[], Any]:
        from tests.benchmarks import plain  # noqa: PLC0415

        dataset, parsed = folder / "dataset.parquet", folder / "plain.parquet"
        if stage == "build":
            return lambda: plain.build(dataset, folder / "plain.jsonl")
        if stage == "validate":
            requests = _plain_requests(folder)
            return lambda: plain.validate(requests)
        if stage == "parse":
            output = _plain_output(folder)
            return lambda: plain.parse(output, parsed)
        run, _ = _in_child(folder)
        return lambda: plain.join(dataset, parsed, run.folder.staging / "rows.parquet", folder / "plain.joined.parquet")

    return prepare


STAGES: dict[tuple[str, str], Callable[[Path], Callable[[], Any]]] = {
    ("build", "overnight"): _overnight_build,
    ("build", "processes"): _spread_build,
    ("validate", "overnight"): _overnight_validate,
    ("parse", "overnight"): _overnight_parse,
    ("parse", "processes"): _overnight_spread,
    ("join", "overnight"): _overnight_join,
    **{(stage, "plain"): _plain(stage) for stage in ("build", "validate", "parse", "join")},
}

if __name__ == "__main__":
    main()
