"""From a profile to its provider: the address, the key, and the embedded endpoint where that is what it names."""

from __future__ import annotations

from pathlib import Path

from overnight.job.profiles import Profile
from overnight.ledger.run import Run
from overnight.providers.google import GoogleProvider
from overnight.providers.inline import InlineProvider
from overnight.providers.keys import check_key
from overnight.providers.local import local_endpoint
from overnight.providers.provider import Provider
from overnight.providers.xai import XaiProvider


def is_embedded(profile: Profile) -> bool:
    """Whether the embedded endpoint is meant, which is started where it does not run."""
    return profile.name == "local" and profile.base_url is None


def check_address(run: Run) -> None:
    """Asks the provider, unless the embedded endpoint or Prefect would have to be started for it.

    Raises:
        NoBatchApi, ProviderError, ProviderUnavailable, Unauthorized: it cannot be used.
    """
    if not is_embedded(run.job.profile) and run.job.provider.credentials is None:
        with connect(run.job.profile, run.home) as provider:
            provider.check()


def connect(
    profile: Profile,
    home: Path,
    api_key: str | None = None,
    organization: str | None = None,
    project: str | None = None,
) -> Provider:
    """Makes a provider; starts the home's embedded endpoint for the `local` profile without a base_url.

    Args:
        profile: who it is.
        home: where the embedded endpoint keeps its batches.
        api_key: a key from elsewhere than the environment.
        organization: of the account, where a key has several.
        project: the same.

    Raises:
        JobError: the key is not meant for this address.
        NoBatchApi, ProviderError, Unauthorized: as `Provider` does.
        Terminal: the embedded endpoint does not start.
    """
    if is_embedded(profile):
        profile = profile.overridden(base_url=local_endpoint(home))
    elif api_key is None:
        check_key(profile)
    kinds = {"anthropic": InlineProvider, "gemini": GoogleProvider, "xai": XaiProvider}
    return kinds.get(profile.dialect, Provider)(profile, api_key, organization, project)
