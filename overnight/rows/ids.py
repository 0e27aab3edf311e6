"""Sets of ids that stay small: 8 bytes an id, where a Python set of the same strings takes 150."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


def id_hashes(ids: Sequence[str] | Sequence[bytes]) -> Hashes:
    """64-bit hashes of ids, good within this process.

    Two of two million ids share a hash once in ten million runs; whoever looks an id up by its hash compares the ids.
    """
    return np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))


class IdSet:
    """Ids by their hashes, in a few sorted arrays that are merged as they grow."""

    def __init__(self) -> None:
        self._runs: list[Hashes] = []

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def contains(self, hashes: Hashes) -> Mask:
        """Which of the hashes are in the set."""
        order = np.argsort(hashes)  # neighbours are found near each other: in half of the time, and less in a large set
        looked, there = hashes[order], np.zeros(len(hashes), dtype=np.bool_)
        for run in self._runs:
            there |= run[np.minimum(np.searchsorted(run, looked), len(run) - 1)] == looked
        found = np.empty_like(there)
        found[order] = there
        return found

    def add(self, hashes: Hashes) -> Mask:
        """Adds hashes; tells which were not there before, the first of equals only."""
        distinct, first = np.unique(hashes, return_index=True)
        fresh = ~self.contains(distinct)
        new = np.zeros(len(hashes), dtype=np.bool_)
        new[first[fresh]] = True
        if fresh.any():
            self._runs.append(distinct[fresh])
            while len(self._runs) > 1 and len(self._runs[-2]) < 2 * len(self._runs[-1]):
                merged = np.concatenate([self._runs.pop(), self._runs.pop()])
                merged.sort()
                self._runs.append(merged)
        return new

    def add_all(self, ids: Iterable[str] | Iterable[bytes], chunk: int = 65_536) -> None:
        """Adds a stream of ids."""
        pending: list[Any] = []
        for one in ids:
            pending.append(one)
            if len(pending) == chunk:
                self.add(id_hashes(pending))
                pending.clear()
        if pending:
            self.add(id_hashes(pending))
