"""Read-ahead and write-behind: Arrow, the disk and hashes of large blocks work without Python's lock, on a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items; the next one is read while the caller is busy with the one before."""
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = thread.submit(next, items, None)
            yield item


class WriteBehind:
    """Does one call after the other, in order, while the caller makes what is written next: no more than one waits."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._doing: Future[Any] | None = None

    def hand(self, write: Callable[..., Any], *arguments: Any) -> None:
        """Takes a call once the one before is done; raises what that one raised."""
        self.wait()
        self._doing = self._thread.submit(write, *arguments)

    def wait(self) -> None:
        """Returns once all is done; raises what the last call raised."""
        if self._doing is not None:
            self._doing.result()

    def close(self) -> None:
        """Ends the thread once it is idle; raises nothing."""
        self._thread.shutdown()
