"""Read-ahead and write-behind: the order of the caller, and every error told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import pytest

from overnight.store.threads import WriteBehind, read_ahead


def test_items_come_in_order_and_the_error_after_those_before_it() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise OSError("the disk is gone")

    seen: list[int] = []
    with pytest.raises(OSError, match="the disk is gone"):
        seen.extend(read_ahead(items()))
    assert seen == [0, 1, 2, 3, 4]


def test_a_reader_may_stop_early() -> None:
    assert next(read_ahead(iter([1, 2, 3]))) == 1


def test_writes_are_done_in_order_and_a_failed_one_is_told() -> None:
    done: list[int] = []
    with closing(WriteBehind()) as behind:
        for number in range(20):
            behind.hand(done.append, number)
        behind.wait()
        assert done == list(range(20))
        behind.hand(int, "no number")
        with pytest.raises(ValueError, match="no number"):
            behind.hand(done.append, 20)
