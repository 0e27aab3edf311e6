"""How long commands take to say something: seconds, and ratio to a Python that imports nothing but the command line's parser.

    python -m tests.benchmarks.start [--rounds 5]

Medians over rounds in which all commands take turns, each in a process of its own, in a home with one job that is done.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.stages import JOB


def main() -> None:
    """Runs everything and prints a Markdown table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    rounds = options.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "rows.csv").write_text("title,text\n" + "".join(f"t{n},some text\n" for n in range(60)))
        job = {**JOB, "dataset": {"path": str(home / "rows.csv")}}
        (home / "job.json").write_text(json.dumps(job))
        (home / "bad.json").write_text(json.dumps(job | {"modle": "x"}))
        ours = [sys.executable, "-m", "flows"]
        at_home = ["--home", str(home / "home")]
        commands = {
            "python, cyclopts alone": [sys.executable, "-c", "import cyclopts"],
            "--help": [*ours, "--help"],
            "schema": [*ours, "schema"],
            "an error in the job file": [*ours, "plan", str(home / "bad.json")],
            "plan of 60 rows": [*ours, "plan", str(home / "job.json"), *at_home],
            "status": [*ours, "status", *at_home],
        }
        taken: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, command in commands.items():
                taken[name].append(seconds(command, home))
    base = statistics.median(taken["python, cyclopts alone"])
    print(f"\nmedian of {rounds}\n\n| command | seconds | ratio |\n| --- | --- | --- |")  # noqa: T201
    for name, times in taken.items():
        middle = statistics.median(times)
        print(f"| {name} | {middle:.2f} | {middle / base:.1f} |")  # noqa: T201


def seconds(command: list[str], home: Path) -> float:
    """Wall time of a command, where no Prefect server is named."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    started = time.perf_counter()
    subprocess.run(command, env=environment | {"PREFECT_HOME": str(home)}, check=False, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
