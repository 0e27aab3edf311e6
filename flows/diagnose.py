"""diagnose_batch: what went wrong in a batch or a job, grouped by error code, with examples and what to do."""

from __future__ import annotations

from prefect import flow
from prefect.runtime import flow_run

from flows.states import ending_in_words
from overnight.store.home import home_path
from tasks.account import diagnose


def _name() -> str:
    return str(flow_run.parameters.get("batch"))


@flow(name="diagnose_batch", flow_run_name=_name)
@ending_in_words
def diagnose_batch(batch: str, home: str | None = None) -> str:
    """Tells what went wrong, in Markdown; the same is an artifact on the page.

    Args:
        batch: a batch id, or the name of a job for all of its batches.
        home: the folder of runs; else `OVERNIGHT_HOME`, else `data/runs`.

    Raises:
        JobError: the ledger knows neither.
    """
    return diagnose(batch, home_path(home))
