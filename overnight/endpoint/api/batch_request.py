"""The body of a batch's creation, as the API takes it."""

from hashlib import blake2b
from typing import Annotated, Final, Literal

import msgspec
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from overnight.endpoint.storage.records import MAX_METADATA, window_seconds

SHORTEST_KEEP: Final = 3_600
LONGEST_KEEP: Final = 2_592_000


def _storable(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    if not text.isascii():
        text.encode()
    return text


Text = Annotated[str, AfterValidator(_storable)]


class ExpiresAfter(BaseModel):
    """How long a file is kept from its creation, as OpenAI bounds it: one hour to 30 days."""

    model_config = ConfigDict(extra="forbid")

    anchor: Literal["created_at"]
    seconds: int = Field(ge=SHORTEST_KEEP, le=LONGEST_KEEP)


class CreateBatch(BaseModel):
    """The body of a batch's creation."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: Text
    endpoint: Text
    completion_window: Text
    metadata: dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]] | None = Field(
        default=None, max_length=MAX_METADATA
    )
    output_expires_after: ExpiresAfter | None = None

    @field_validator("completion_window")
    @classmethod
    def _is_window(cls, value: str) -> str:
        window_seconds(value)
        return value

    def digest(self) -> bytes:
        """Return what two requests for the same batch have in common."""
        return blake2b(msgspec.json.encode(self.model_dump(), order="sorted"), digest_size=16).digest()
