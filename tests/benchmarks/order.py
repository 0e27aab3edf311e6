"""Answers in row order out of result parts that were exported in order, and shuffled: seconds, ratio, peak memory.

    python -m tests.benchmarks.order [--rows 1000000] [--parts 2000]

Each case is a process of its own, over the same results; what counts is that the order of an export costs nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.stages import peak_mb

CASES = ("ordered", "shuffled")
_STEP = 2048


def main() -> None:
    """Measures both orders and prints a Markdown table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rows", type=int, default=200_000)
    options.add_argument("--parts", type=int, default=400)
    options.add_argument("--one", metavar="FOLDER", help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.one:
        print(json.dumps(measure(Path(given.one), given.rows)))  # noqa: T201 - read by the parent
        return
    print(f"\n{given.rows:,} rows, {given.parts:,} parts\n\n| export | rows/s | ratio | peak MiB |\n| --- | --- | --- | --- |")  # noqa: T201 # fmt: skip
    seconds = dict[str, float]()
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            write_parts(Path(folder) / case, given.rows, given.parts, shuffled=case == "shuffled")
            command = [sys.executable, "-m", "tests.benchmarks.order", "--one", f"{folder}/{case}"]
            done = subprocess.run([*command, "--rows", str(given.rows)], check=True, capture_output=True, text=True)
            seconds[case], peak = json.loads(done.stdout)
            ratio = seconds[case] / seconds["ordered"]
            print(f"| {case} | {given.rows / seconds[case]:,.0f} | {ratio:.1f} | {peak:.0f} |", flush=True)  # noqa: T201


def measure(folder: Path, rows: int) -> tuple[float, float]:
    """Seconds and peak memory of bringing all results into the order of the rows."""
    from overnight.answers.results import result_schema  # noqa: PLC0415 - not in the process that makes the data
    from overnight.answers.row_order import row_order  # noqa: PLC0415
    from overnight.job.answer import Answer  # noqa: PLC0415

    started = time.perf_counter()
    schema, parts = result_schema(Answer.text()), sorted(folder.glob("part-*.parquet"))
    with row_order(folder / "spill", schema, folder / "rows.parquet", rows, parts) as order:
        answered = 0
        for first in range(0, rows, _STEP):
            taken = order.take(first, min(_STEP, rows - first))
            answered += taken.num_rows - taken["answer"].null_count
    if answered != rows:
        raise SystemExit(f"{answered:,} of {rows:,} rows have an answer")
    return time.perf_counter() - started, peak_mb()


def write_parts(folder: Path, rows: int, parts: int, *, shuffled: bool) -> None:
    """Writes a map of rows, and one result of about 600 bytes for each."""
    import pyarrow as pa  # noqa: PLC0415 - not in the processes that are measured
    import pyarrow.parquet as pq  # noqa: PLC0415

    folder.mkdir()
    order = list(range(rows))
    chosen = random.Random(11)
    if shuffled:
        chosen.shuffle(order)
    ids = [f"bench-{chosen.getrandbits(128):032x}" for _ in range(rows)]
    nothing = pa.nulls(rows, pa.string())
    row_map = {"row": list(range(rows)), "custom_id": ids, "error_code": nothing, "error_message": nothing}
    pq.write_table(pa.table(row_map), folder / "rows.parquet", row_group_size=8192)
    for number in range(parts):
        mine = order[rows * number // parts : rows * (number + 1) // parts]
        part = {
            "custom_id": [ids[row] for row in mine],
            "verdict": ["succeeded"] * len(mine),
            "answer": [f"The answer to row {row}, as it was asked for. " * 5 for row in mine],
            "finish_reason": ["stop"] * len(mine),
            "input_tokens": [120] * len(mine),
            "output_tokens": [20] * len(mine),
            "raw": [f'{{"choices": [{row}]}}' * 20 for row in mine],
        }
        pq.write_table(pa.table(part), folder / f"part-{number:06d}.parquet", compression="zstd")


if __name__ == "__main__":
    main()
