"""A soak of the endpoint: many lines, an upstream that fails one call in ten, kills; one result per line at the end.

python -m tests.benchmarks.endpoint_soak [--lines 5000] [--batches 20] [--kills 10]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from openai import OpenAI
from openai.types import Batch

from tests.test_endpoint_support import (
    ENDED,
    Endpoint,
    client,
    create_batch,
    endpoint,
    held_upstream,
    read_lines,
    request_line,
    until,
)

CONCURRENCY = 16


def soak(folder: Path, lines: int, batches: int, kills: int) -> int:
    """Run it; return how many answers were asked for a second time.

    Raises:
        AssertionError: a line has no result or two, or more was asked for twice than was in flight at the kills.
    """
    with held_upstream(failing=0.1) as upstream:
        options = ("--upstream", upstream.url, "--concurrency", str(CONCURRENCY))
        with endpoint(folder, *options) as running, client(running.url) as sdk:
            made = [batch.id for batch in create_batches(sdk, lines, batches)]
            kill_after(lines // (kills + 2), running, sdk, made)
        for kill in range(2, kills + 1):
            with endpoint(folder, *options) as running, client(running.url) as sdk:
                kill_after(lines * kill // (kills + 2), running, sdk, made)
        with endpoint(folder, *options) as running, client(running.url) as sdk:
            ended = until(lambda: found(sdk, made), lambda all_: all(one.status in ENDED for one in all_), 300)
            files = [file_id for batch in ended for file_id in (batch.output_file_id, batch.error_file_id)]
            results = Counter(line["custom_id"] for file_id in files for line in read_lines(sdk, file_id))
        assert {batch.status for batch in ended} == {"completed"}
        assert results == Counter(f"row-{number}" for number in range(lines))
        assert sum(map(finished, ended)) == lines
        again = sum(upstream.answered.values()) - lines
        assert again <= kills * CONCURRENCY
        return again


def kill_after(lines: int, running: Endpoint, sdk: OpenAI, batch_ids: list[str]) -> None:
    """Kill the server once so many lines are finished."""
    until(lambda: sum(map(finished, found(sdk, batch_ids))), lambda count: count >= lines, 120)
    running.kill()


def create_batches(sdk: OpenAI, lines: int, batches: int) -> list[Batch]:
    """Spread the lines over the batches."""
    rows = [request_line(f"row-{number}", f"prompt {number}") for number in range(lines)]
    return [create_batch(sdk, rows[start::batches]) for start in range(batches)]


def found(sdk: OpenAI, batch_ids: list[str]) -> list[Batch]:
    """The batches as they are now."""
    listed = {batch.id: batch for batch in sdk.batches.list(limit=100)}
    return [listed[batch_id] for batch_id in batch_ids]


def finished(batch: Batch) -> int:
    """Lines that have a result."""
    counts = batch.request_counts
    return counts.completed + counts.failed if counts else 0


def main() -> None:
    """Runs it once and says how it went."""
    options = argparse.ArgumentParser(description=__doc__)
    for name, value in (("lines", 5000), ("batches", 20), ("kills", 10)):
        options.add_argument(f"--{name}", type=int, default=value)
    given = options.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        again = soak(Path(folder), given.lines, given.batches, given.kills)
    print(  # noqa: T201
        f"{given.lines} lines in {given.batches} batches, {given.kills} kills, {time.monotonic() - began:.0f} s: "
        f"one result per line; {again} answers asked for again, of {given.kills * CONCURRENCY} in flight at the kills"
    )


if __name__ == "__main__":
    main()
