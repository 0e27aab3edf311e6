"""credentials: the Prefect block that holds a provider's key. The one place where a key is kept."""

from __future__ import annotations

from typing import Any

from prefect.blocks.core import Block
from pydantic import Field, SecretStr

from overnight.errors import Unauthorized
from overnight.profiles import profile_names


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


def register_blocks() -> None:
    """Registers the block type with the Prefect server, so that its page has a form for it."""
    BatchProvider.register_type_and_schema()
