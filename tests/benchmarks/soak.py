"""A soak: jobs killed at random moments against a provider that misbehaves, until enough kills are counted.

    python -m tests.benchmarks.soak [--kills 200]

Every job has to end with one verdict per row and every request billed as often as it was owed; the first that does not
ends the soak with its seed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.conftest import ProviderProcess
from tests.test_crash import start, told

ROWS = 24


def main() -> None:
    """Runs jobs with one seed after the other."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=200)
    wanted = options.parse_args().kills
    kills = seed = 0
    while kills < wanted:
        seed += 1
        with tempfile.TemporaryDirectory() as folder:
            kills += one_job(Path(folder), seed)
        print(f"{kills:4} of {wanted} kills, {seed} jobs, every row answered, no row billed twice", flush=True)  # noqa: T201


def one_job(folder: Path, seed: int) -> int:
    """One job to its end; returns how often it was killed."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"row {n}"}) + "\n" for n in range(ROWS)))
    provider = ProviderProcess()
    try:
        faults = [{"call": "create", "status": 500, "effect": True}, {"call": "retrieve", "status": 502, "times": 3},
                  {"call": "content", "cut": "middle", "effect": True}]  # fmt: skip
        provider.order(faults=faults, default={"polls": 2}, batches=[{"end": "expired", "answer": 3}])
        job: dict[str, Any] = {
            "name": "soak", "dataset": {"path": str(rows)}, "model": "m",
            "task": {"kind": "generate", "prompt": "{{ text }}"},
            "provider": {"profile": "custom", "base_url": provider.base_url},
            "limits": {"max_requests": 6, "poll_seconds": 0.02, "lost_reply_seconds": 1.0},
        }  # fmt: skip
        outcome = told(start(job, folder / "home", str(seed)))
        billed = provider.books()["billed"]
    finally:
        provider.stop()
    if outcome["statuses"] != {"succeeded": ROWS} or sorted(billed.values()) != [1] * ROWS:
        sys.exit(f"seed {seed}: {outcome}, billed {sorted(billed.values())}")
    return int(outcome["kills"])


if __name__ == "__main__":
    main()
