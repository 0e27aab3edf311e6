"""The job: what to ask of which rows, of whom, within which limits.

Every model is strict and frozen, and every field carries its description: it becomes the editor's help (`overnight
schema`) and the form on the Prefect page.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, field_validator, model_validator

from overnight.job.clock import finish_at
from overnight.job.parameters import check_parameters
from overnight.job.profiles import Profile, profile_names
from overnight.job.task import Part, Raw, Task
from overnight.text import did_you_mean


def _known_profile(name: str) -> str:
    if name not in profile_names():
        raise ValueError(f"there is no provider profile {name!r}{did_you_mean(name, profile_names())}")
    return name


_LATER = {
    "dataset": {"delimiter", "encoding", "sql"},
    "task": {"messages", "images", "files", "audio", "media_folder", "tools", "tool_choice", "constant", "strict"},
}
"""Fields that came after the first version: left out of a job's definition where they are not used."""


class Dataset(Part):
    """Where the rows come from."""

    path: str = ""
    """A csv, parquet or jsonl file, a folder or glob of them, or an fsspec URL. Relative paths start at the working
    directory. Leave it out only where a DataFrame is handed over."""
    key: tuple[str, ...] = ()
    """Columns that together name a row; checked to be unique. Optional."""
    format: Literal["auto", "csv", "parquet", "jsonl"] = "auto"
    """How to read the files; `auto` goes by the file name."""
    delimiter: str | None = Field(default=None, min_length=1, max_length=1)
    """What stands between the cells of a csv file, where it is not seen from the file."""
    encoding: str | None = None
    """The encoding of text files as Python names it (`cp1252`, `utf-16`), where it is neither UTF-8 nor told by a
    byte-order mark."""
    sql: str | None = Field(default=None, min_length=1)
    """A DuckDB query in place of files: `select … from 'data/*.parquet' where … order by id`. It needs an ORDER BY, or
    `key`. File names in it start at the folder `path`, else at the working directory."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return "dataset.sql" if self.sql is not None else self.path


class Prices(Part):
    """What the provider asks, where the price list does not know it."""

    input: float = Field(ge=0)
    """USD per million input tokens, as batches are billed."""
    output: float = Field(ge=0)
    """USD per million output tokens, as batches are billed."""


class ProviderChoice(Part, title="Provider"):
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
    cache_system: bool | None = None
    """Mark a system text that requests share to be cached for an hour, where the provider takes marks (anthropic, which
    does it unless told otherwise): reading it costs a tenth, writing it twice as much."""
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
            caches_system=self.cache_system,
        )


class Limits(Part):
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
    finish_by: str | None = None
    """Ask in real time, at list price, for what batches have not answered shortly before a time: `06:00`, by this
    machine's clock or `06:00 Europe/Berlin`, or `20h` after it was built. Open batches are cancelled for it where the
    provider bills only what is done."""
    rescue_concurrency: int = Field(default=8, ge=1, le=256)
    """Requests in real time at once."""
    lost_reply_seconds: float | None = Field(default=None, ge=0)
    """How long a batch is looked for whose create call got no answer, before it is created again."""
    poll_seconds: float | None = Field(default=None, gt=0)
    """Shortest pause between two looks at a batch; pauses grow from here to ten times as long."""

    @field_validator("finish_by")
    @classmethod
    def _names_a_time(cls, value: str | None) -> str | None:
        try:
            finish_at(value or "1h", 0.0)
        except ValueError as error:
            raise ValueError(f"limits.finish_by: {error}") from None
        return value


class Table(Part):
    """A table of a lakehouse that the joined rows are committed to, once for each build or change of them."""

    format: Literal["delta", "iceberg"]
    """`delta`: Delta Lake; it needs `overnight[delta]`. `iceberg`: Apache Iceberg; it needs `overnight[iceberg]`."""
    uri: str = Field(min_length=1)
    """Delta: a folder, or an address such as `s3://bucket/path`. Iceberg: `catalog.namespace.table`, a catalog as
    PyIceberg knows it. Keys stand in the environment (`AWS_ACCESS_KEY_ID`, `PYICEBERG_CATALOG__…`)."""
    mode: Literal["merge", "append"] = "merge"
    """`merge`: a row replaces the one with the same `dataset.key`, and others are added. `append`: the rows of a build
    are added once, when each has its verdict; of the two, what Iceberg can."""

    @model_validator(mode="after")
    def _can_be_meant(self) -> Table:
        if self.format == "iceberg" and self.mode != "append":
            raise ValueError("output.table: an iceberg table takes mode: append; merge is what a delta table can")
        if self.format == "iceberg" and self.uri.count(".") < 2:
            raise ValueError(f"output.table.uri: {self.uri!r} should be catalog.namespace.table for iceberg")
        return self


class Output(Part):
    """How the joined table looks."""

    prefix: str = Field(default="", pattern=r"^[A-Za-z0-9_]*$")
    """Set before the names of all columns that overnight adds: for datasets that have a column of the same name."""
    table: Table | None = None
    """A table that the joined rows are committed to as well."""


class Report(Part):
    """What the report adds."""

    compare: str | None = None
    """A column with the expected answers: the report shows how many agree."""
    samples: int = Field(default=10, ge=0, le=100)
    """Rows with their answers, and rows without, that the page shows, picked at random; 0 keeps rows off the page."""


class Variant(Part):
    """What one variant of a job has of its own; all else is the job's."""

    model: str | None = Field(default=None, min_length=1)
    """Another model."""
    provider: ProviderChoice | None = None
    """Another provider, in place of the job's."""
    parameters: dict[str, JsonValue] | None = None
    """Parameters over the job's."""
    task: dict[str, JsonValue] | None = None
    """Fields over the task's, such as another `prompt` or `system`."""


_LABEL = r"^[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}$"
"""Of a variant: it names columns (`answer@label`)."""


class Job(Part):
    """A dataset, a task, a model, a provider, and limits."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,30}$")
    """Names the run's folder and starts every custom_id: up to 31 letters, digits, - and _."""
    dataset: Dataset = Dataset()
    """Where the rows come from."""
    task: Task
    """What to ask of each row."""
    model: str | None = Field(default=None, min_length=1)
    """The model, as the provider names it. Only `raw` goes without: its bodies name theirs."""
    models: tuple[Annotated[str, Field(pattern=_LABEL)], ...] = ()
    """Several models in place of one: each answers all rows, and one table has their answers side by side."""
    variants: dict[Annotated[str, Field(pattern=_LABEL)], Variant] = Field(default={})
    """Several variants of the job by their labels, each with its own model, provider, parameters or fields of the task.
    Limits hold for each."""
    parameters: dict[str, JsonValue] = Field(default={})
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
    def _table_where_it_can_be(self) -> Job:
        if self.output.table is None:
            return self
        if self.has_variants:
            raise ValueError("output.table takes the rows of a job without models and variants")
        if self.output.table.mode == "merge" and not self.dataset.key:
            raise ValueError(
                "output.table.mode merge needs a dataset.key, by which rows replace those before; or append"
            )
        return self

    @model_validator(mode="after")
    def _model_where_needed(self) -> Job:
        if self.models or self.variants:
            return self._check_variants()
        if self.model is None and not isinstance(self.task, Raw):
            raise ValueError("a model is needed: model: NAME, as the provider calls it")
        if isinstance(self.task, Raw) and (self.model or self.parameters):
            raise ValueError("raw bodies are sent as they are: leave out model and parameters")
        if isinstance(self.task, Raw):
            return self
        check_parameters(self.task.url, self.parameters)
        return self

    def _check_variants(self) -> Job:
        """Each variant is checked whole, as a job, by who runs it."""
        if isinstance(self.task, Raw):
            raise ValueError("raw bodies name their own models: leave out models and variants")  # noqa: TRY004 - Pydantic's
        if self.models and (self.model or self.variants):
            raise ValueError("models stands in place of model and variants: give one of the three")
        if len(set(self.models)) < len(self.models):
            raise ValueError("models names one of them twice")
        if self.model is None and not all(one.model for one in self.variants.values()):
            raise ValueError("a model is needed: model: NAME, or one for each variant")
        return self

    @property
    def has_variants(self) -> bool:
        """Whether it stands for several jobs over the same rows (`overnight.job.variants.variant_jobs`)."""
        return bool(self.models or self.variants)

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
        for part, names in _LATER.items():  # a job of an older version is still the same job
            fields = type(getattr(self, part)).model_fields
            unused = {
                name for name in names if name in fields and getattr(getattr(self, part), name) == fields[name].default
            }
            parts[part] = {name: value for name, value in parts[part].items() if name not in unused}
        profile = self.profile
        return parts | {"provider": profile.name, "base_url": profile.base_url}
