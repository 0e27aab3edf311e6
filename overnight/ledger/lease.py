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

from overnight.errors import JobBusy
from overnight.ledger.database import Ledger

LEASE_SECONDS = 60.0
"""How long a job waits for a machine that died; also what the clocks of machines that share a ledger may be apart."""
_RENEW_SECONDS = 15.0
"""Three renewals may fail before the lease ends."""
_LOOK_SECONDS = 0.5
logger = logging.getLogger("overnight.lease")


@contextmanager
def leased(ledger: Ledger, job: str, patience: float = 0) -> Iterator[str]:
    """Holds a job's lease; yields the owner's name, which the ledger asks for before every paid call.

    Args:
        ledger: where the lease stands.
        job: whose steps are to be taken.
        patience: seconds to wait for another process that holds it.

    Raises:
        JobBusy: another process holds it still.
    """
    owner = f"{socket.gethostname()}:{os.getpid()}:{uuid4().hex[:8]}"
    _acquire(ledger, job, owner, time.monotonic() + patience)
    done = threading.Event()
    renewing = threading.Thread(target=_renew, args=(ledger, job, owner, done), daemon=True, name=f"lease-{job}")
    renewing.start()
    try:
        yield owner
    finally:
        done.set()
        renewing.join()
        ledger.release(job, owner)


def _acquire(ledger: Ledger, job: str, owner: str, until: float) -> None:
    told = False
    while (holder := ledger.acquire(job, owner, time.time(), time.time() + LEASE_SECONDS)) is not None:
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


def _renew(ledger: Ledger, job: str, owner: str, done: threading.Event) -> None:
    while not done.wait(_RENEW_SECONDS):
        ledger.acquire(job, owner, time.time(), time.time() + LEASE_SECONDS)


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
