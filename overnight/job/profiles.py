"""Provider profiles: what each Batch API takes, gives and lacks. The facts are data, in `profiles.toml`."""

from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from overnight.errors import JobError, NoBatchApi
from overnight.text import did_you_mean

_FILE = Path(__file__).with_name("profiles.toml")


class Profile(BaseModel):
    """One provider's Batch API."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    name: str
    as_of: str
    """The month in which its facts were read in the provider's own documentation."""
    dialect: Literal["openai", "mistral", "anthropic", "gemini", "xai"] = "openai"
    """The form of its Batch API; a file each in `overnight/providers/dialects`."""
    base_url: str | None = None
    api_key_env: str | None = None
    """The environment variable that holds the key by default; none where no key is needed."""
    hosts: tuple[str, ...] = ()
    """Endings of the hosts that its key may go to, where each customer has an address of his own."""
    has_batch_api: bool = True
    models: tuple[str, ...] = ()
    """The only models that there are at its own address; empty: they are not known here."""
    endpoints: tuple[str, ...] = ("/v1/chat/completions",)
    """The urls that a request line may have."""
    max_requests: int = 50_000
    """Lines in one batch file."""
    max_bytes: int = 200_000_000
    """Bytes in one batch file, newlines included."""
    max_enqueued_tokens: int | None = None
    """Input tokens in open batches at the same time; unknown for most accounts until the provider refuses."""
    completion_window: str = "24h"
    purpose: str = "batch"
    """The purpose that an input file is uploaded with."""
    structured_output: Literal["json_schema", "json_object", "none"] = "json_schema"
    """The strongest `response_format` that the provider is documented to take."""
    fetches_addresses: bool = True
    """Whether it fetches images and documents by their addresses."""
    lists_batches: bool = True
    """Whether the batches of the account can be listed: how a lost reply is found again."""
    probes_queue: bool = False
    """Whether the account has a limit of enqueued tokens that nobody tells: until it is known, a batch goes out when
    the one before was accepted."""
    keeps_cancelled: bool = False
    """Whether a cancelled batch hands over what it has answered, and nothing else is billed, as far as it is
    documented: only then is one cancelled so that the rest can be asked for in real time."""
    caches_system: bool = False
    """Whether a system text that neighbouring requests share is marked to be cached for an hour (Anthropic)."""
    expires_outputs: bool = False
    """Whether `output_expires_after` is taken."""
    discount: float | None = None
    """The fraction that a batch saves against real time; unknown when absent."""
    price_provider: str | None = None
    """The provider's id in genai-prices."""
    poll_seconds: float = 30
    output_days: float = 30
    """How long result files are kept: as long as one may still show up, it is asked for."""
    file_addresses: bool = False
    """Whether result files are named by addresses to be fetched as they are, rather than by ids (SiliconFlow)."""
    lost_reply_seconds: float = 180
    """How long after a create call whose reply was lost its batch is looked for before it is created again: longer than
    the call may take (120 s) and than a listing may lag."""
    notes: tuple[str, ...] = ()
    """What a person should know before the job is sent; `overnight plan` shows them."""

    @staticmethod
    def named(name: str) -> Profile:
        """Looks a profile up.

        Raises:
            JobError: no profile has this name.
        """
        if (found := _profiles().get(name)) is None:
            raise JobError(f"there is no provider profile {name!r}{did_you_mean(name, profile_names())}")
        return found

    @property
    def queue(self) -> str:
        """Names the provider's queue: profile and address."""
        return f"{self.name} {self.base_url or ''}".strip()

    def overridden(self, **fields: Any) -> Profile:
        """A copy with the given fields; a field that is None keeps the profile's value."""
        return self.model_copy(update={name: value for name, value in fields.items() if value is not None})


def profile_names() -> list[str]:
    """All profile names, in the file's order."""
    return list(_profiles())


@cache
def _profiles() -> dict[str, Profile]:
    tables = tomllib.loads(_FILE.read_text(encoding="utf-8"))
    return {name: Profile(name=name, **fields) for name, fields in tables.items()}


def require_batch_api(profile: Profile) -> None:
    """Refuses a provider that has no Batch API at all.

    Raises:
        NoBatchApi: says what to put before it.
    """
    if profile.has_batch_api:
        return
    raise NoBatchApi(
        f"{profile.name} has no Batch API at {profile.base_url}. Put overnight's own before it:\n"
        f"    overnight endpoint --upstream {profile.base_url} --key-env {profile.api_key_env}\n"
        "and set in the job: provider: {profile: custom, base_url: http://127.0.0.1:8642/v1}"
    )
