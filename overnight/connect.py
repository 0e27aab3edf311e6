"""From a job to its provider: the address, the key, and the embedded endpoint where that is what it names."""

from __future__ import annotations

from overnight.local import local_endpoint
from overnight.provider import Provider
from overnight.run import Run


def check_address(run: Run) -> None:
    """Asks the provider, unless the embedded endpoint or Prefect would have to be started for it.

    Raises:
        NoBatchApi, ProviderError, ProviderUnavailable, Unauthorized: it cannot be used.
    """
    embedded = run.job.profile.name == "local" and run.job.profile.base_url is None
    if not embedded and run.job.provider.credentials is None:
        with connect(run) as provider:
            provider.check()


def connect(run: Run, api_key: str | None = None) -> Provider:
    """Makes the job's provider; starts the embedded endpoint for the `local` profile without a base_url.

    Args:
        run: whose job names the provider.
        api_key: a key from elsewhere than the environment.

    Raises:
        NoBatchApi, ProviderError, Unauthorized: as `Provider` does.
        Terminal: the embedded endpoint does not start.
    """
    profile = run.job.profile
    if profile.name == "local" and profile.base_url is None:
        profile = profile.overridden(base_url=local_endpoint(run.home))
    return Provider(profile, api_key)
