"""list_batches: the batches of an account, newest first, and which of them are ours."""

from __future__ import annotations

from prefect import flow

from flows.names import ProviderInput, name_provider_run
from flows.states import ending_in_words
from overnight.job.jobfile import choose_provider
from overnight.providers.listing import ListedBatch
from overnight.providers.local import stop_local_endpoint
from overnight.store.home import home_path
from tasks.account import list_account


@flow(name="list_batches", flow_run_name=name_provider_run, validate_parameters=False)
@ending_in_words
def list_batches(provider: ProviderInput, limit: int = 100, home: str | None = None) -> list[ListedBatch]:
    """Lists an account's batches, as a table on the page too.

    Args:
        provider: its settings, a profile's name, or a job file that names it.
        limit: how many, newest first.
        home: the folder of runs, whose ledger tells which batches are ours.

    Raises:
        OvernightError: the provider cannot be used; says what to mend.
    """
    folder = home_path(home)
    try:
        return list_account(choose_provider(provider), folder, limit)
    finally:
        stop_local_endpoint(folder)
