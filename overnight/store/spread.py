"""Pure work on many items: here, in other processes of this machine, or on the workers of a cluster.

Only work that may be done twice, or in two places at once, is handed to `spread`: an engine does a task again whose
worker died, and what a cluster could not do is done here. Submitting never is such work.
"""

from __future__ import annotations

import atexit
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import cache
from importlib import import_module
from typing import Any, TypeVar

from overnight.errors import JobError, OvernightError

logger = logging.getLogger("overnight.spread")
RUNNERS = ("threads", "processes", "dask", "ray")
ENOUGH_BYTES = 512 << 20
"""Less is done here sooner: the other processes take some seconds to start, and a core parses 60 MB in one."""
_IDLE_SECONDS = 60
_TRIES = 3
"""Of a task whose worker died, at a cluster."""
_ends: list[Callable[[], Any]] = []
"""What ends the clusters that were begun, and leaves those that were found."""
T = TypeVar("T")
R = TypeVar("R")
Submit = Callable[[Callable[[T], R], T], "Future[R]"]


def runner_for(items: int, size: int) -> str:
    """Where work is done: as `OVERNIGHT_RUNNER` says, else in processes where there are cores and enough of it.

    Args:
        items: how many there are.
        size: bytes of all of them.

    Raises:
        JobError: the variable says something else.
    """
    told = os.environ.get("OVERNIGHT_RUNNER", "")
    if told and told not in RUNNERS:
        raise JobError(f"OVERNIGHT_RUNNER is {', '.join(RUNNERS[:-1])} or {RUNNERS[-1]}, not {told!r}")
    if told:
        return told
    if items < 2 or size < ENOUGH_BYTES:
        return "threads"
    return "processes" if _cores() > 1 else "threads"


def is_elsewhere(runner: str) -> bool:
    """Whether the work may be done on a machine that does not see this one's disk."""
    return runner in ("dask", "ray")


def spread(work: Callable[[T], R], items: Sequence[T], runner: str) -> Iterator[R | OvernightError]:
    """Does pure work on each item; yields what came of it, in the order of the items.

    Args:
        work: a function of a module, which takes and gives little: paths, counts.
        items: what it is done on.
        runner: of `runner_for`.

    Raises:
        JobError: what the runner needs is not installed, or its cluster cannot be reached.
    """
    if runner == "threads":
        yield from (_done(work, item) for item in items)
        return
    start: dict[str, Callable[[], Submit[Any, Any]]] = {"processes": _processes, "dask": _dask, "ray": _ray}
    submit = start[runner]()
    futures = [submit(work, item) for item in items]
    try:
        for item, future in zip(items, futures, strict=True):
            try:
                yield future.result()
            except OvernightError as error:
                yield getattr(error, "cause", error)  # Ray's copy of it tells where it was raised, in colours
            except Exception as error:  # noqa: BLE001 - a worker that died, however its engine says so
                logger.warning("a worker was lost (%s: %s): its work is done here", type(error).__name__, error)
                yield _done(work, item)
    finally:
        for future in futures:
            future.cancel()


def _done(work: Callable[[T], R], item: T) -> R | OvernightError:
    try:
        return work(item)
    except OvernightError as error:
        return error


def _cores() -> int:
    import loky  # noqa: PLC0415 - a tenth of a second, for who has something to spread

    return int(loky.cpu_count())  # what a container may use, where that is less


def _processes() -> Submit[Any, Any]:
    import loky  # noqa: PLC0415 - the same

    executor: Any = loky.get_reusable_executor(max_workers=_cores(), timeout=_IDLE_SECONDS)
    submit: Submit[Any, Any] = executor.submit
    return submit


def _extra(module: str, runner: str) -> Any:
    try:
        return import_module(module)
    except ImportError:
        raise JobError(f"OVERNIGHT_RUNNER={runner}: pip install 'overnight[{runner}]'") from None


@cache
def _dask() -> Submit[Any, Any]:
    """The cluster of `DASK_SCHEDULER_ADDRESS`, else one of this machine's cores."""
    distributed = _extra("distributed", "dask")
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    try:
        client = distributed.Client(address or _subprocess_cluster())
    except OSError as error:
        raise JobError(f"the Dask scheduler {address} cannot be reached ({error}): DASK_SCHEDULER_ADDRESS") from None
    _ends.append(client.shutdown if address is None else client.close)
    submit: Submit[Any, Any] = client.get_executor(pure=False, retries=_TRIES).submit
    return submit


def _subprocess_cluster() -> Any:
    """A worker for each core, started as programs: those of `LocalCluster` import the main module, and run it again."""
    cluster = import_module("distributed.deploy.subprocess").SubprocessCluster
    return cluster(n_workers=_cores(), threads_per_worker=1, dashboard_address=None, silence_logs=logging.ERROR)


@cache
def _ray() -> Submit[Any, Any]:
    """The cluster of `RAY_ADDRESS`, else one of this machine's cores."""
    ray = _extra("ray", "ray")
    try:
        ray.init(os.environ.get("RAY_ADDRESS"), ignore_reinit_error=True, include_dashboard=False, log_to_driver=False)
    except ConnectionError as error:
        raise JobError(f"Ray cannot be reached ({error}): RAY_ADDRESS") from None
    _ends.append(ray.shutdown)
    return lambda work, item: ray.remote(max_retries=_TRIES)(work).remote(item).future()


@atexit.register
def end_clusters() -> None:
    """Ends what was begun here."""
    while _ends:
        _ends.pop()()
    _dask.cache_clear()
    _ray.cache_clear()
