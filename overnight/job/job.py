"""The job: what to ask of which rows, of whom, within which limits.

Every model is strict and frozen, and every field carries its description: it becomes the editor's help (`overnight
schema`) and the form on the Prefect page.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, field_validator, model_validator

from overnight.job.profiles import Profile, profile_names
from overnight.text import did_you_mean


def _known_profile(name: str) -> str:
    if name not in profile_names():
        raise ValueError(f"there is no provider profile {name!r}{did_you_mean(name, profile_names())}")
    return name


TOKEN_LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
"""Parameters that bound the length of an answer, as the endpoints name them."""
Template = Annotated[str, Field(min_length=1, description="Jinja over the row's columns, such as `{{ review }}`.")]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, use_attribute_docstrings=True)


class Dataset(_Part):
    """Where the rows come from."""

    path: str = ""
    """A csv, parquet or jsonl file, a folder or glob of them, or an fsspec URL. Relative paths start at the working
    directory. Leave it out only where a DataFrame is handed over."""
    key: tuple[str, ...] = ()
    """Columns that together name a row; checked to be unique. Optional."""
    format: Literal["auto", "csv", "parquet", "jsonl"] = "auto"
    """How to read the files; `auto` goes by the file name."""


class Generate(_Part):
    """One chat completion per row, free text or structured."""

    kind: Literal["generate"] = "generate"
    prompt: Template
    """The user message."""
    system: str | None = None
    """The system message: also a template. Keep it the same for all rows, and providers can cache it."""
    output_schema: dict[str, JsonValue] | str | None = Field(default=None, alias="schema")
    """What the answer looks like: a JSON Schema, the path of a file with one, or `module:PydanticModel`. Each of its
    properties becomes a typed column `answer_<property>`."""


class Summarize(_Part):
    """A summary per row."""

    kind: Literal["summarize"] = "summarize"
    text: Template
    """What to summarize."""
    sentences: int = Field(default=2, ge=1, le=50)
    """Length of a summary, in sentences."""
    style: str = "concise and accurate"
    """How the summary should read."""


class Translate(_Part):
    """A translation per row."""

    kind: Literal["translate"] = "translate"
    text: Template
    """What to translate."""
    target_language: str = Field(min_length=1)
    """The language to translate into, in words: `French`."""
    source_language: str | None = None
    """The language of the text, where it is known."""


class Classify(_Part):
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

    @field_validator("labels")
    @classmethod
    def _distinct(cls, labels: tuple[str, ...] | dict[str, str]) -> tuple[str, ...] | dict[str, str]:
        if len(set(labels)) < len(labels):
            raise ValueError("task.labels has a label twice")
        return labels


class Extract(_Part):
    """Named, typed fields per row."""

    kind: Literal["extract"] = "extract"
    text: Template
    """What to extract from."""
    fields: dict[str, Literal["string", "integer", "number", "boolean", "strings"]] = Field(min_length=1)
    """Name of a field: its type. Each becomes a column `answer_<field>`, null where the text does not say."""
    instructions: str | None = None
    """One more sentence for the model, such as what the texts are."""


class Embed(_Part):
    """An embedding per row (`/v1/embeddings`)."""

    kind: Literal["embed"] = "embed"
    input: Template
    """What to embed."""


class Respond(_Part):
    """One call of the Responses API per row (`/v1/responses`)."""

    kind: Literal["respond"] = "respond"
    input: Template
    """What to answer."""
    instructions: str | None = None
    """The system message: also a template."""
    output_schema: dict[str, JsonValue] | str | None = Field(default=None, alias="schema")
    """As in `generate`."""


class Complete(_Part):
    """A plain completion per row (`/v1/completions`)."""

    kind: Literal["complete"] = "complete"
    prompt: Template
    """The text to continue."""


class Moderate(_Part):
    """A moderation verdict per row (`/v1/moderations`)."""

    kind: Literal["moderate"] = "moderate"
    input: Template
    """What to judge."""


class Raw(_Part):
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


class Prices(_Part):
    """What the provider asks, where the price list does not know it."""

    input: float = Field(ge=0)
    """USD per million input tokens, as batches are billed."""
    output: float = Field(ge=0)
    """USD per million output tokens, as batches are billed."""


class ProviderChoice(_Part, title="Provider"):
    """Who answers. A profile gives everything; the other fields override it."""

    profile: Annotated[str, AfterValidator(_known_profile)] = Field(
        default="local", json_schema_extra=lambda schema: schema.update(enum=[*profile_names()])
    )
    """A name from `overnight/job/profiles.toml`; `local` starts the embedded endpoint, `custom` needs `base_url`."""
    base_url: str | None = Field(default=None, pattern=r"^https?://")
    """The address of the API, with its `/v1`."""
    api_key_env: str | None = None
    """The environment variable that holds the key. The key itself never stands in a job."""
    credentials: str | None = None
    """The name of a Prefect `BatchProvider` block that holds the key; what the job leaves out of profile and base_url,
    the block gives."""
    completion_window: str | None = None
    """How long the provider may take, such as `24h`."""
    prices: Prices | None = Field(default=None, title="Prices")
    """USD per million tokens, where the price list has none."""

    @property
    def as_profile(self) -> Profile:
        """The provider's profile with these overrides applied."""
        return Profile.named(self.profile).overridden(
            base_url=self.base_url,
            has_batch_api=True if self.base_url else None,
            api_key_env=self.api_key_env,
            completion_window=self.completion_window,
        )


class Limits(_Part):
    """How much, how often, how long. What is left out comes from the provider's profile."""

    budget_usd: float | None = Field(default=None, gt=0)
    """What the job may cost in all, over all its runs: a batch that could go above it is not sent."""
    approve_above_usd: float | None = Field(default=None, ge=0)
    """Ask a person before anything is sent, where a run may cost more than this."""
    canary_rows: int | None = Field(default=None, ge=1)
    """Send so many requests first; the others only when no more than `max_failed_fraction` of these failed, and none
    cost more than planned."""
    max_rows: int | None = Field(default=None, ge=1)
    """Take only the first rows of the dataset."""
    max_requests: int | None = Field(default=None, ge=1)
    """Requests in one batch."""
    max_bytes: int | None = Field(default=None, ge=1024)
    """Bytes in one batch file."""
    max_open_batches: int = Field(default=20, ge=1)
    """Batches of this job at the provider at the same time."""
    max_enqueued_tokens: int | None = Field(default=None, ge=1)
    """Estimated input tokens in open batches at the same time; also the largest batch."""
    max_attempts: int = Field(default=3, ge=1, le=20)
    """How often a request is sent before its last failure counts."""
    max_reasks: int = Field(default=1, ge=0, le=10)
    """How often an invalid answer is asked for again, with what was wrong with it, or with more tokens where it was
    cut."""
    resubmit_lost: bool = False
    """Send the requests of a batch again that the provider does not know any more; they may have been paid."""
    deadline_hours: float = Field(default=26, gt=0, le=24 * 15)
    """How long after its creation a batch is waited for."""
    lost_reply_seconds: float | None = Field(default=None, ge=0)
    """How long a batch is looked for whose create call got no answer, before it is created again."""
    poll_seconds: float | None = Field(default=None, gt=0)
    """Shortest pause between two looks at a batch; pauses grow from here to ten times as long."""


class Output(_Part):
    """How the joined table looks."""

    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$")
    """Set before the names of all columns that overnight adds: for datasets that have a column of the same name."""


class Report(_Part):
    """What the report adds."""

    compare: str | None = None
    """A column with the expected answers: the report shows how many agree."""
    samples: int = Field(default=10, ge=0, le=100)
    """Rows with their answers, and rows without, that the page shows, picked at random; 0 keeps rows off the page."""


class Job(_Part):
    """A dataset, a task, a model, a provider, and limits."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$")
    """Names the run's folder and starts every custom_id: up to 31 letters, digits, - and _."""
    dataset: Dataset = Dataset()
    """Where the rows come from."""
    task: Task
    """What to ask of each row."""
    model: str | None = Field(default=None, min_length=1)
    """The model, as the provider names it. Only `raw` goes without: its bodies name theirs."""
    parameters: dict[str, JsonValue] = {}
    """Put into every request body as they are: `temperature`, `max_tokens`, `reasoning_effort`, …"""
    provider: ProviderChoice = ProviderChoice()
    """Who answers."""
    limits: Limits = Limits()
    """How much at once, how often, how long."""
    deduplicate: bool = True
    """Send identical requests once and give the answer to all their rows; `false` samples one prompt several times."""
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    """The run counts as failed above this fraction of rows without an answer."""
    output: Output = Output()
    """How the joined table looks."""
    report: Report = Report()
    """What the report adds."""
    cleanup: Literal["after_join", "never"] = "after_join"
    """Whether input and result files are deleted at the provider, once the joined table holds their answers."""

    @model_validator(mode="after")
    def _model_where_needed(self) -> Job:
        if self.model is None and not isinstance(self.task, Raw):
            raise ValueError("a model is needed: model: NAME, as the provider calls it")
        if isinstance(self.task, Raw) and (self.model or self.parameters):
            raise ValueError("raw bodies are sent as they are: leave out model and parameters")
        reserved = sorted(self.parameters.keys() & {"model", "messages", "input", "prompt", "stream", "instructions"})
        if reserved:
            raise ValueError(f"parameters cannot hold {', '.join(reserved)}: the task and the model field set the body")
        return self

    @property
    def is_request_file(self) -> bool:
        """Whether the dataset is a batch JSONL file whose lines are sent as they are."""
        return isinstance(self.task, Raw) and self.task.body is None

    @property
    def profile(self) -> Profile:
        """The provider's profile with this job's overrides applied."""
        return self.provider.as_profile.overridden(
            max_requests=self.limits.max_requests,
            max_bytes=self.limits.max_bytes,
            max_enqueued_tokens=self.limits.max_enqueued_tokens,
            poll_seconds=self.limits.poll_seconds,
            lost_reply_seconds=self.limits.lost_reply_seconds,
        )

    def definition(self) -> dict[str, Any]:
        """What makes this job's requests: it may not change while batches are open. Limits may."""
        parts = self.model_dump(
            mode="json", by_alias=True, include={"dataset", "task", "model", "parameters", "deduplicate"}
        )
        profile = self.profile
        return parts | {"provider": profile.name, "base_url": profile.base_url}
