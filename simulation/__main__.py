"""Runs histories by seed, and tells the shortest story of one that broke a promise.

    python -m simulation --seeds 1000 [--from SEED]     histories of fresh seeds, or from one on
    python -m simulation --seed SEED                    one of them again, told step by step

The same seed of the same commit is the same history: what processes do, where they are killed and stopped, and what the
provider makes of it. Exit code 1: a promise was broken.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import count, islice
from typing import NamedTuple

from simulation.history import History, history_of, told
from simulation.world import PromiseBroken

_AT_ONCE = 20
"""Histories that a process runs before it reports."""


class Outcome(NamedTuple):
    """What some histories came to."""

    seeds: int
    virtual_seconds: float
    broken: tuple[tuple[int, str], ...]
    """Seeds, and the promises that they broke."""


def main() -> int:
    """Runs what the options say."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=200, help="how many histories")
    options.add_argument("--from", type=int, dest="first", help="the first seed; else a fresh one")
    options.add_argument("--seed", type=int, help="one history, told step by step")
    options.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    given = options.parse_args()
    logging.disable(logging.CRITICAL)
    if given.seed is not None:
        return replay(given.seed)
    first = secrets.randbelow(1 << 40) if given.first is None else given.first
    return run(first, given.seeds, given.processes)


def run(first: int, seeds: int, processes: int) -> int:
    """Runs many histories; prints how fast, and how to replay what broke."""
    _say(f"seeds {first} to {first + seeds - 1}")
    began, done, virtual, broken = time.monotonic(), 0, 0.0, list[tuple[int, str]]()
    with ProcessPoolExecutor(processes, initializer=logging.disable, initargs=(logging.CRITICAL,)) as pool:
        for outcome in pool.map(run_seeds, _chunks(first, seeds)):
            done, virtual = done + outcome.seeds, virtual + outcome.virtual_seconds
            broken += outcome.broken
            for seed, promise in outcome.broken:
                _say(f"  {promise}\n    python -m simulation --seed {seed}")
    seconds = time.monotonic() - began
    years, rate = virtual / 86_400 / 365, done / seconds * 60
    _say(f"{done:,} histories, {years:,.1f} virtual years, {rate:,.0f} a minute; {len(broken)} broke a promise")
    return 1 if broken else 0


def _chunks(first: int, seeds: int) -> Iterator[range]:
    for at in range(first, first + seeds, _AT_ONCE):
        yield range(at, min(at + _AT_ONCE, first + seeds))


def run_seeds(seeds: Sequence[int]) -> Outcome:
    """Runs histories one after the other."""
    virtual, broken = 0.0, list[tuple[int, str]]()
    for seed in seeds:
        seconds, promise = outcome_of(history_of(seed))
        virtual += seconds
        if promise is not None:
            broken.append((seed, promise))
    return Outcome(len(seeds), virtual, tuple(broken))


def outcome_of(history: History) -> tuple[float, str | None]:
    """The virtual seconds of a history, and the promise that it broke."""
    world = history.begin()
    try:
        for step in history.steps:
            step.take(world)
        world.end()
    except PromiseBroken as broken:
        return world.provider.skew, str(broken)
    except Exception as error:  # noqa: BLE001 - whatever a process did not expect is a finding
        return world.provider.skew, f"{type(error).__name__}: {error}"
    finally:
        world.close()
    return world.provider.skew, None


def replay(seed: int) -> int:
    """Tells one history, and the shortest that breaks the same kind of promise where it breaks one."""
    history = history_of(seed)
    _, promise = outcome_of(history)
    if promise is None:
        _say(told(history) + "\nevery promise was kept")
        return 0
    short = shrunk(history)
    _say(told(short) + f"\n{outcome_of(short)[1]}")
    return 1


def shrunk(history: History) -> History:
    """The history without the steps that it breaks a promise without, first many at a time, then each."""
    steps = list(history.steps)
    size = len(steps) // 2
    while size:
        for at in islice(count(0, size), len(steps) // size + 1):
            fewer = steps[:at] + steps[at + size :]
            if len(fewer) < len(steps) and outcome_of(history._replace(steps=tuple(fewer)))[1] is not None:
                steps = fewer
        size //= 2
    return history._replace(steps=tuple(steps))


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - it is the output


if __name__ == "__main__":
    sys.exit(main())
