"""The body of a batch's creation, as the API takes it."""

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from overnight.endpoint.records import window_seconds


def _storable(text: str) -> str:
    """Refuse half of a surrogate pair, which JSON can spell and UTF-8 cannot."""
    if not text.isascii():
        text.encode()
    return text


Text = Annotated[str, AfterValidator(_storable)]


class CreateBatch(BaseModel):
    """The body of a batch's creation."""

    model_config = ConfigDict(extra="forbid")

    input_file_id: Text
    endpoint: Text
    completion_window: Text
    metadata: dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]] | None = Field(
        default=None, max_length=16
    )

    @field_validator("completion_window")
    @classmethod
    def _is_window(cls, value: str) -> str:
        window_seconds(value)
        return value
