"""commit: the joined rows into the job's table of a lakehouse, once."""

from __future__ import annotations

import logging

from prefect import task
from prefect.cache_policies import NO_CACHE

from overnight.answers.lakehouse import commit_joined
from overnight.errors import LedgerError
from overnight.ledger.run import Run
from overnight.reports.summary import Tally

logger = logging.getLogger("overnight.commit")


@task(name="commit", task_run_name="commit", cache_policy=NO_CACHE)
def commit_rows(run: Run, tally: Tally) -> int | None:
    """Commits what was joined.

    Args:
        run: the job.
        tally: what the joined rows add up to.

    Returns:
        The table's version that has them; None where they are to be appended, and some wait for answers.

    Raises:
        LedgerError: the job was not built here.
        Terminal: the table does not take them.
    """
    if (record := run.ledger.job(run.job.name)) is None or (table := run.job.output.table) is None:
        raise LedgerError(f"the job {run.job.name!r} was not built here, or has no output.table")
    version = commit_joined(run, record, awaited=tally.errors["missing", "awaited"] > 0)
    if version is None:
        logger.info("%s: rows are appended once each has its verdict", table.uri)
    else:
        logger.info("%s: version %d has the rows of %s", table.uri, version, run.job.name)
    return version
