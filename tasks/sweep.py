"""sweep: deletes what killed processes left in a home on an object store."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.ledger.leftovers import leftovers
from overnight.ledger.run import Run
from overnight.store.objects import forget

logger = logging.getLogger("overnight.sweep")


@task(name="sweep", task_run_name="sweep", cache_policy=NO_CACHE)
def sweep_leftovers(run: Run) -> int:
    """Deletes files of builds that were never planned, a week after they were put; returns how many."""
    found = leftovers(run)
    for path in found:
        forget(path)
    if found:
        logger.info("%d files of builds that were never planned are deleted", len(found))
    return len(found)
