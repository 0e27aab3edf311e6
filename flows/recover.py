"""recover_job: takes up a job whose ledger is gone, another one, or older than what was sent. Spends nothing."""

from __future__ import annotations

from flows.names import JobInput
from flows.pipeline import Pipeline, job_flow
from overnight.ledger.database import Ledger
from overnight.store.home import home_path
from tasks.credentials import open_job_or_record
from tasks.recover import Recovered, recover_batches


@job_flow("recover_job")
def recover_job(job: JobInput, home: str | None = None) -> Recovered:
    """Lists the provider's batches, and gives those of the job back to the ledger; `collect` or a run goes on then.

    Args:
        job: its job file; or its name, where the ledger knows it.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        JobError: the ledger does not know the job, and no job file is given.
        ProviderError: the provider does not list its batches.
    """
    Ledger.of(home_path(home), anew=True)
    with Pipeline(open_job_or_record(job, home)) as pipeline, pipeline.lease(checked=False):
        return recover_batches(pipeline.run)
