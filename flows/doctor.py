"""doctor: whether an endpoint does all that a job needs, tried call by call without spending anything."""

from __future__ import annotations

from prefect import flow

from flows.names import ProviderInput, name_provider_run
from flows.states import ending_in_words
from overnight.job.jobfile import choose_provider
from overnight.providers.local import stop_local_endpoint
from overnight.store.home import home_path
from tasks.doctor import Diagnosis, examine


@flow(name="doctor", flow_run_name=name_provider_run, validate_parameters=False)
@ending_in_words
def doctor(provider: ProviderInput, home: str | None = None) -> Diagnosis:
    """Probes an endpoint: address, key, upload, list, create, metadata, cancel, delete.

    Args:
        provider: its settings, a profile's name, or a job file that names it.
        home: the folder of runs, where the embedded endpoint keeps its batches.

    Raises:
        OvernightError: there is no address, no key, or no Batch API to be tried.
    """
    folder = home_path(home)
    try:
        return examine(choose_provider(provider), folder)
    finally:
        stop_local_endpoint(folder)
