"""credentials: the Prefect block that holds a provider's key, and from a job to its provider with that key.

Not a step: flows and steps call it. The block is the one place where a key is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prefect.blocks.core import Block
from prefect.blocks.system import Secret
from pydantic import Field, SecretStr

from overnight.errors import HomeError, Unauthorized
from overnight.job.form import from_form, is_form
from overnight.job.job import Job, ProviderChoice
from overnight.job.jobfile import load_job
from overnight.job.profiles import Profile, profile_names
from overnight.ledger.run import Run, open_run, recorded_run
from overnight.providers.account import check_account
from overnight.providers.connect import connect
from overnight.providers.keys import check_block_address
from overnight.providers.provider import Provider


class BatchProvider(Block):
    """An account at a provider of a Batch API."""

    _block_type_name = "Batch Provider"
    _block_type_slug = "batch-provider"
    _description = "The key of an account at a provider of a Batch API; jobs name it as provider.credentials."

    api_key: SecretStr = Field(description="The key. Kept encrypted; never shown, logged, or put into parameters.")
    profile: str | None = Field(
        default=None,
        description="The provider's profile, for jobs that name none.",
        json_schema_extra=lambda schema: schema.update(examples=[*profile_names()]),
    )
    base_url: str | None = Field(default=None, description="Another address than the profile's.")
    organization: str | None = Field(default=None, description="Sent as OpenAI-Organization.")
    project: str | None = Field(default=None, description="Sent as OpenAI-Project.")


def load_credentials(name: str) -> BatchProvider:
    """Loads a block.

    Raises:
        Unauthorized: there is none of this name.
    """
    try:
        block: Any = BatchProvider.load(name)
    except ValueError:
        raise Unauthorized(
            f"Prefect has no Batch Provider block named {name!r}: `overnight register` registers the type; "
            "make one then, on the page under Blocks or with BatchProvider(api_key=…).save(name)"
        ) from None
    return BatchProvider.model_validate(block)


def home_secrets(name: str) -> dict[str, str]:
    """What the store of a home asks for, out of a Secret block with a JSON object, such as `access_key_id` and others.

    Raises:
        HomeError: there is no such block, or it holds something else.
    """
    try:
        block: Any = Secret.load(name)
    except ValueError:
        raise HomeError(
            f"Prefect has no Secret block named {name!r} (OVERNIGHT_HOME_BLOCK): make one on the page under Blocks, or "
            "with Secret(value={…}).save(name)"
        ) from None
    held = block.get()
    if not isinstance(held, dict) or not all(isinstance(value, str) for value in held.values()):
        raise HomeError(f"the Secret block {name!r} (OVERNIGHT_HOME_BLOCK) has to hold a JSON object of texts: "
                        '{"access_key_id": "…", "secret_access_key": "…"}')  # fmt: skip
    return held


def register_blocks() -> None:
    """Registers the block type with the Prefect server, so that its page has a form for it."""
    BatchProvider.register_type_and_schema()


def open_job(job: Any, dataset: Any = None, home: str | None = None) -> Run:
    """Reads a job as flows take it; what it leaves out of its provider, its block gives.

    Raises:
        OvernightError: as `overnight.run.open_run` does.
        Unauthorized: there is no block of the name that the job gives.
    """
    read = load_job(from_form(job) if is_form(job) else job)
    if (name := read.provider.credentials) is not None:
        block = load_credentials(name)
        read = read.model_copy(update={"provider": with_account(read.provider, block)})
        check_block(read.provider.as_profile, block, name)
    return open_run(read, dataset, home)


def with_account(choice: ProviderChoice, block: BatchProvider) -> ProviderChoice:
    """A provider filled up from a block; what it says itself stays."""
    given = {"profile": block.profile, "base_url": block.base_url}
    return choice.model_copy(
        update={name: value for name, value in given.items() if value and name not in choice.model_fields_set}
    )


def check_block(profile: Profile, block: BatchProvider, name: str) -> None:
    """Refuses to send a block's key elsewhere than the block says.

    Raises:
        JobError: the job, or its profile, names another address.
    """
    own = block.base_url or (Profile.named(block.profile).base_url if block.profile else None)
    if own is None and profile.base_url == Profile.named(profile.name).base_url:
        return  # the block names no address, and the job none but its profile's
    check_block_address(profile.base_url, own, name)


def find_job(job: Any, home: str | None = None) -> Run:
    """A job that was built before, by its name, its fields or its file; as the ledger has it.

    One with variants is as its file says: the ledger has the variants, and itself only once their answers are combined.

    Raises:
        JobError: it was not built in this home.
    """
    if is_form(job):
        return recorded_run(str(job["name"]), home)
    if isinstance(job, Job | Mapping) or (isinstance(job, str) and Path(job).suffix in (".yaml", ".yml", ".json")):
        read = load_job(job)
        return open_run(read, home=home) if read.has_variants else recorded_run(read.name, home)
    return recorded_run(str(job), home)


def open_job_or_record(job: Any, home: str | None = None) -> Run:
    """A job by its file or fields; or by its name, as the ledger has it.

    Raises:
        OvernightError: as `open_job` and `find_job` do.
    """
    named = isinstance(job, str) and Path(job).suffix not in (".yaml", ".yml", ".json")
    return find_job(job, home) if named else open_job(job, home=home)


def provider_of(run: Run, *, any_account: bool = False) -> Provider:
    """Makes a run's provider; use it in a `with`.

    Args:
        run: the job.
        any_account: whether its open batches may be another account's.

    Raises:
        OtherAccount: open batches of the job were sent with another one.
        Unauthorized: there is no block of the name that the job gives, or no key in the environment.
        OvernightError: as `overnight.providers.connect.connect` does.
    """
    provider = _connected(run.job.profile, run.home, run.job.provider.credentials)
    try:
        if not any_account:
            check_account(run.ledger, provider, run.ledger.shards(run.job.name))
    except BaseException:
        provider.close()
        raise
    return provider


def open_provider(choice: ProviderChoice, home: Path) -> Provider:
    """Makes a provider; use it in a `with`.

    Raises:
        OvernightError: as `provider_of` does.
    """
    if choice.credentials is None:
        return _connected(choice.as_profile, home, None)
    block = load_credentials(choice.credentials)
    return _connected(with_account(choice, block).as_profile, home, choice.credentials)


def _connected(profile: Profile, home: Path, credentials: str | None) -> Provider:
    if credentials is None:
        return connect(profile, home)
    block = load_credentials(credentials)
    check_block(profile, block, credentials)
    return connect(profile, home, block.api_key.get_secret_value(), block.organization, block.project)
