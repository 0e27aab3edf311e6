"""One process at a time takes a job's steps: a lease in the ledger, renewed while it works, that dies with it."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from overnight.errors import JobBusy, LeaseLost, LedgerUnavailable, OvernightError
from overnight.ledger.database import Ledger

LEASE_SECONDS = 60.0
"""How long a job waits for a machine that died; also what the clocks of machines that share a ledger may be apart."""
_RENEWALS = 4
"""Renewals in the time of a lease: three of them may fail before it ends."""
_MARGIN = 0.1
"""The part of a lease before its end in which no step is begun any more."""
_LOOK_SECONDS = 0.5
logger = logging.getLogger("overnight.lease")
_held: dict[str, float] = {}
"""By owner: the moment (of `time.monotonic`) until which this process may take steps."""


@contextmanager
def leased(ledger: Ledger, job: str, patience: float = 0, seconds: float = LEASE_SECONDS) -> Iterator[str]:
    """Holds a job's lease; yields the owner's name, which the ledger asks for before every paid call.

    Args:
        ledger: where the lease stands.
        job: whose steps are to be taken.
        patience: seconds to wait for another process that holds it.
        seconds: how long the lease outlives its last renewal.

    Raises:
        JobBusy: another process holds it still.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
    _acquire(ledger, job, owner, time.monotonic() + patience, seconds)
    done = threading.Event()
    arguments = (ledger, job, owner, done, seconds)
    renewing = threading.Thread(target=_renew, args=arguments, daemon=True, name=f"lease-{job}")
    renewing.start()
    try:
        yield owner
    finally:
        done.set()
        renewing.join()
        _held.pop(owner, None)
        try:
            ledger.release(job, owner)
        except LedgerUnavailable as error:  # it runs out by itself
            logger.warning("the lease on %s was not given back: %s", job, error)


def check_lease(owner: str) -> None:
    """Refuses to begin a step when the lease could not be renewed in time: another process may hold the job by now.

    Raises:
        LeaseLost: the lease is over, or all but over.
    """
    until = _held.get(owner)
    if until is not None and time.monotonic() >= until:
        raise LeaseLost("the lease on the job could not be renewed: run it again, it goes on where it was")


def _acquire(ledger: Ledger, job: str, owner: str, until: float, seconds: float) -> None:
    told = False
    while (holder := _take(ledger, job, owner, seconds)) is not None:
        if _is_dead(holder):
            ledger.release(job, holder)
            continue
        host, pid, _ = holder.rsplit(":", 2)
        if time.monotonic() >= until:
            raise JobBusy(f"process {pid} on {host} is at work on the job {job!r}")
        if not told:
            logger.info("process %s on %s is at work on the job %r: waiting for it", pid, host, job)
            told = True
        time.sleep(_LOOK_SECONDS)


def _take(ledger: Ledger, job: str, owner: str, seconds: float) -> str | None:
    """Takes or renews the lease, and notes until when it holds; returns the owner who has it instead."""
    began = time.monotonic()
    holder = ledger.acquire(job, owner, time.time(), time.time() + seconds)
    if holder is None:
        _held[owner] = began + seconds * (1 - _MARGIN)
    return holder


def _renew(ledger: Ledger, job: str, owner: str, done: threading.Event, seconds: float) -> None:
    """Renews until told to end, whatever the database does; steps stop by themselves where it does not come back."""
    while not done.wait(seconds / _RENEWALS):
        if time.monotonic() >= _held.get(owner, 0.0):  # it may have ended, and another process may have come and gone
            logger.error("the lease on %s could not be renewed in time: nothing more is begun here", job)
            _held[owner] = 0.0
            return
        try:
            holder = _take(ledger, job, owner, seconds)
        except OvernightError as error:
            logger.warning("the lease on %s could not be renewed: %s; trying again", job, error)
            continue
        if holder is not None:
            logger.error("the lease on %s is held by %s now: nothing more is begun here", job, holder)
            _held[owner] = 0.0
            return


def _is_dead(owner: str) -> bool:
    """Whether the owner was a process of this machine that is gone: after a kill nobody has to wait."""
    host, pid, _ = owner.rsplit(":", 2)
    if host != socket.gethostname():
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return False
