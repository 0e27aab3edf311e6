"""The tasks: what to ask of each row, in templates over its columns."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
EMBEDDINGS, COMPLETIONS, MODERATIONS = "/v1/embeddings", "/v1/completions", "/v1/moderations"
TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Parameters that bound the length of an answer, as the endpoints name them."""
Template = Annotated[str, Field(min_length=1, description="Jinja over the row's columns, such as `{{ review }}`.")]


class Part(BaseModel):
    """A part of a job: strict, frozen, its fields described."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class _Asked(Part):
    """What is rendered from templates."""

    constant: bool = False
    """Allow templates that name no column: every row is asked the same."""

    url: ClassVar[str] = CHAT
    """The endpoint that the requests go to."""


Media = Template | tuple[Template, ...] | None


class _Seen(_Asked):
    """What may be shown to the model beside the text."""

    images: Media = None
    """Images: `{{ url }}`, or a list of such. A column may hold an address, a path (fsspec), the bytes, or a list of
    these; null is no image. Addresses are sent where the provider fetches them, all else as base64."""
    files: Media = None
    """Documents such as PDF: as `images`."""
    audio: Media = None
    """Recordings (WAV, MP3), always sent as base64: as `images`. Not with `respond`."""
    media_folder: str | None = Field(default=None, min_length=1)
    """The local folder that paths in rows start in and may not lead out of: whoever writes the rows must not choose
    which files of this machine are sent away. Without it: the working directory, and the dataset's own folder."""


class Message(Part):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks."""
    content: Template
    """What is said."""


class Generate(_Seen):
    """One chat completion per row, free text or structured."""

    kind: Literal["generate"] = "generate"
    prompt: Template | None = None
    """The user message."""
    messages: tuple[Message, ...] | str | None = None
    """In place of `prompt`: a list of messages (`role`, `content`), for examples or several turns; or the name of a
    column that holds a conversation as a list of them."""
    system: str | None = None
    """The system message: also a template. Keep it the same for all rows, and providers can cache it."""
    output_schema: dict[str, JsonValue] | str | None = Field(default=None, alias="schema")
    """What the answer looks like: a JSON Schema, the path of a file with one, or `module:PydanticModel`. Each of its
    properties becomes a typed column `answer_<property>`."""
    strict: bool = True
    """Whether the provider holds answers to the schema, where it can: it is closed for that, and every property
    required. `false` sends it as it is."""
    tools: tuple[dict[str, JsonValue], ...] = ()
    """Functions that the model may call: `name`, `description`, `parameters` (a JSON Schema). Calls come back as
    `answer_tool` and `answer_arguments`, checked against it."""
    tool_choice: Literal["auto", "required", "none"] | str | None = None
    """Whether it has to call one, or the name of the one to call."""

    @model_validator(mode="after")
    def _one_way_to_ask(self) -> Generate:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("task: either prompt or messages says what to ask")
        if self.tools and self.output_schema is not None:
            raise ValueError("task.tools and task.schema: an answer is a call or an object, leave one of them out")
        if isinstance(self.messages, tuple) and not self.messages:
            raise ValueError("task.messages has no message")
        if isinstance(self.messages, str) and (self.images or self.files or self.audio):
            raise ValueError("task.messages names a column of conversations: images, files and audio stand in them")
        return self


class Summarize(_Asked):
    """A summary per row."""

    kind: Literal["summarize"] = "summarize"
    text: Template
    """What to summarize."""
    sentences: int = Field(default=2, ge=1, le=50)
    """Length of a summary, in sentences."""
    style: str = "concise and accurate"
    """How the summary should read."""


class Translate(_Asked):
    """A translation per row."""

    kind: Literal["translate"] = "translate"
    text: Template
    """What to translate."""
    target_language: str = Field(min_length=1)
    """The language to translate into, in words: `French`."""
    source_language: str | None = None
    """The language of the text, where it is known."""


class Classify(_Seen):
    """One label per row, from a list."""

    kind: Literal["classify"] = "classify"
    text: Template
    """What to classify."""
    labels: tuple[str, ...] | dict[str, str] = Field(min_length=2)
    """The labels; or label: description, where a label needs explaining."""
    label_name: str = Field(default="label", pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
    """What the labels tell, in a word: `sentiment`, `topic`, `urgency`. Small models answer better when it is said."""
    instructions: str | None = None
    """One more sentence for the model, such as what the texts are."""

    @field_validator("labels", mode="before")
    @classmethod
    def _quoted(cls, labels: Any) -> Any:
        words = [one for one in labels if isinstance(one, bool)] if isinstance(labels, list | tuple | dict) else []
        if words:
            raise ValueError("task.labels: YAML reads yes, no, on, off, true and false as booleans: put them into "
                             'quotes, such as labels: ["yes", "no"]')  # fmt: skip
        return labels

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
        if len(set(labels)) < len(labels):
            raise ValueError("task.labels has a label twice")
        return labels


class Extract(_Seen):
    """Named, typed fields per row."""

    kind: Literal["extract"] = "extract"
    text: Template
    """What to extract from."""
    fields: dict[str, Literal["string", "integer", "number", "boolean", "strings"]] = Field(min_length=1)
    """Name of a field: its type. Each becomes a column `answer_<field>`, null where the text does not say."""
    instructions: str | None = None
    """One more sentence for the model, such as what the texts are."""


class Embed(_Asked):
    """An embedding per row (`/v1/embeddings`)."""

    kind: Literal["embed"] = "embed"
    input: Template
    """What to embed."""

    url: ClassVar[str] = EMBEDDINGS


class Respond(_Seen):
    """One call of the Responses API per row (`/v1/responses`)."""

    kind: Literal["respond"] = "respond"
    input: Template
    """What to answer."""
    instructions: str | None = None
    """The system message: also a template."""
    output_schema: dict[str, JsonValue] | str | None = Field(default=None, alias="schema")
    """As in `generate`."""
    strict: bool = True
    """As in `generate`."""
    tools: tuple[dict[str, JsonValue], ...] = ()
    """As in `generate`."""
    tool_choice: Literal["auto", "required", "none"] | str | None = None
    """As in `generate`."""

    @model_validator(mode="after")
    def _no_audio(self) -> Respond:
        if self.audio:
            raise ValueError("task.audio: the Responses API takes no recordings; use kind: generate")
        if self.tools and self.output_schema is not None:
            raise ValueError("task.tools and task.schema: an answer is a call or an object, leave one of them out")
        return self

    url: ClassVar[str] = RESPONSES


class Complete(_Asked):
    """A plain completion per row (`/v1/completions`)."""

    kind: Literal["complete"] = "complete"
    prompt: Template
    """The text to continue."""

    url: ClassVar[str] = COMPLETIONS


class Moderate(_Asked):
    """A moderation verdict per row (`/v1/moderations`)."""

    kind: Literal["moderate"] = "moderate"
    input: Template
    """What to judge."""

    url: ClassVar[str] = MODERATIONS


class Raw(Part):
    """Request bodies that exist already, sent as they are."""

    kind: Literal["raw"] = "raw"
    body: str | None = None
    """The column that holds whole request bodies (JSON text or a struct). Left out: the dataset is a batch JSONL file,
    with its own custom_ids."""
    url: str = "/v1/chat/completions"
    """The endpoint for the bodies of a column; a batch JSONL file names its own."""


def _as_tabs(schema: dict[str, Any]) -> None:
    """Prefect's form makes tabs of `anyOf`, and a bare text box of `oneOf` with a discriminator."""
    schema["anyOf"] = schema.pop("oneOf")
    schema.pop("discriminator")


Task = Annotated[
    Generate | Summarize | Translate | Classify | Extract | Embed | Respond | Complete | Moderate | Raw,
    Field(discriminator="kind", json_schema_extra=_as_tabs),
]
