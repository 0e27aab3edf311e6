"""clean_files: deletes our files at a provider that nobody needs any more, orphans among them."""

from __future__ import annotations

from prefect import flow

from flows.names import ProviderInput, name_provider_run
from flows.states import ending_in_words
from overnight.job.jobfile import choose_provider
from overnight.providers.local import stop_local_endpoint
from overnight.store.home import home_path
from tasks.account import Cleaned, clean_account


@flow(name="clean_files", flow_run_name=name_provider_run, validate_parameters=False)
@ending_in_words
def clean_files(
    provider: ProviderInput, older_than_hours: float = 72, dry_run: bool = True, home: str | None = None
) -> Cleaned:
    """Deletes files of ours whose answers are collected, or that no ledger row names; never anybody else's.

    Args:
        provider: its settings, a profile's name, or a job file that names it.
        older_than_hours: younger files stay.
        dry_run: only tell what would be deleted.
        home: the folder of runs, whose ledger tells which files are needed.

    Raises:
        OvernightError: the provider cannot be used; says what to mend.
    """
    folder = home_path(home)
    try:
        return clean_account(choose_provider(provider), folder, older_than_hours, dry_run=dry_run)
    finally:
        stop_local_endpoint(folder)
