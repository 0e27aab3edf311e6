"""How long commands take: seconds, and ratios.

    python -m tests.benchmarks.start [--rounds 5] [--rows 20000]

First those that need no Prefect server, against a Python that imports nothing but the command line's parser. Then a run
of a job against a running Prefect server and a provider on this machine, and the same run again, with nothing to send,
against a flow of nine empty tasks. Medians over rounds in which all take turns, each in a process of its own.
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
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.benchmarks.stages import JOB
from tests.conftest import ProviderProcess
from tests.server import free_port, until

_NINE = """
from prefect import flow, task

@flow
def nine():
    for number in range(9):
        task(name=f"t{number}")(lambda: None)()

nine()
"""


def main() -> None:
    """Runs everything and prints a Markdown table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--rows", type=int, default=20_000)
    chosen = options.parse_args()
    without_server(chosen.rounds)
    with_server(chosen.rounds, chosen.rows)


def without_server(rounds: int) -> None:
    """Commands that say something at once."""
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
    show(taken)


def with_server(rounds: int, rows: int) -> None:
    """A run, and a run with nothing to send, each round in a home of its own."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        provider = ProviderProcess()
        with running_server(folder / "server") as api:
            lines = "".join(f"{n},row number {n} of the dataset\n" for n in range(rows))
            (folder / "rows.csv").write_text("title,text\n" + lines)
            job = {
                **JOB,
                "dataset": {"path": str(folder / "rows.csv")},
                "provider": {"profile": "custom", "base_url": provider.base_url},
                "limits": {"poll_seconds": 1},
            }
            (folder / "job.json").write_text(json.dumps(job))
            taken: dict[str, list[float]] = {"a flow of nine empty tasks": [], f"run of {rows:,} rows": [], "again": []}
            for number in range(rounds):
                run = [
                    sys.executable,
                    "-m",
                    "flows",
                    "run",
                    str(folder / "job.json"),
                    "--home",
                    str(folder / f"{number}"),
                ]
                for name, command in zip(taken, ([sys.executable, "-c", _NINE], run, run), strict=True):
                    taken[name].append(seconds(command, folder, PREFECT_API_URL=api))
        provider.stop()
    show(taken)


@contextmanager
def running_server(home: Path) -> Iterator[str]:
    """A Prefect server for as long as the block runs; yields the address of its API."""
    port = free_port()
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    environment = os.environ | {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    quiet = subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=quiet, stderr=quiet) as server:
        api = f"http://127.0.0.1:{port}/api"
        until(lambda: _answers(f"{api}/health"), bool)
        try:
            yield api
        finally:
            server.terminate()


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(address).close()
    except OSError:
        return False
    return True


def show(taken: dict[str, list[float]]) -> None:
    """Prints medians, and their ratios to the first."""
    base = statistics.median(next(iter(taken.values())))
    rounds = len(next(iter(taken.values())))
    print(f"\nmedian of {rounds}\n\n| command | seconds | ratio |\n| --- | --- | --- |")  # noqa: T201
    for name, times in taken.items():
        middle = statistics.median(times)
        print(f"| {name} | {middle:.2f} | {middle / base:.1f} |")  # noqa: T201


def seconds(command: list[str], home: Path, **more: str) -> float:
    """Wall time of a command, where no Prefect server is named but in `more`."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    started = time.perf_counter()
    subprocess.run(command, env=environment | {"PREFECT_HOME": str(home)} | more, check=False, capture_output=True)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
