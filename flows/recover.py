"""recover_job: takes up a job whose ledger is gone, another one, or older than what was sent. Spends nothing."""

from __future__ import annotations

from flows.names import JobInput
from flows.pipeline import Pipeline, job_flow
from overnight.errors import JobError
from overnight.ledger.database import Ledger
from overnight.store.home import home_path
from tasks.credentials import open_job_or_record
from tasks.recover import Recovered, recover_batches


@job_flow("recover_job")
def recover_job(job: JobInput, home: str | None = None, unsent: bool = False, same_account: bool = False) -> Recovered:
    """Lists the provider's batches, and gives those of the job back to the ledger; `collect` or a run goes on then.

    Args:
        job: its job file; or its name, where the ledger knows it.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.
        unsent: request files of which the provider lists no batch were never sent: their requests may be.
        same_account: the key is a new one of the account that open batches were sent with.

    Raises:
        LedgerError: request files have no batch that the provider lists.
        JobError: the ledger does not know the job, and no job file is given.
        ProviderError: the provider does not list its batches.
    """
    Ledger.of(home_path(home), anew=True)
    run = open_job_or_record(job, home)
    if run.job.has_variants:
        names = ", ".join(one.job.name for one in run.variants().values())
        raise JobError(
            f"{run.job.name} has variants, each a job of its own: recover those ({names}), then run it again"
        )
    with Pipeline(run) as pipeline, pipeline.lease(checked=False):
        return recover_batches(pipeline.run, unsent=unsent, same_account=same_account)
