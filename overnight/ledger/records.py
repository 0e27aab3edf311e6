"""What the ledger tells: jobs, shards and batch attempts, as frozen records. Times are Unix seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from overnight.ledger.states import OPEN, State


@dataclass(frozen=True)
class JobRecord:
    """A job as it was last built."""

    name: str
    job: dict[str, Any]
    definition: dict[str, Any]
    fingerprint: str
    rows: int
    requests: int
    built_at: float
    joined_at: float | None = None
    seconds: float | None = None
    stopped: str | None = None
    """Why nothing more of it is sent, until it is built again."""
    build: str | None = None
    """Which map of rows belongs to it; None where an older version built it."""


@dataclass(frozen=True)
class FolderRecord:
    """What a ledger and the folder of a job tell of each other."""

    job: str
    folder: str
    """Which folder it is."""
    counter: int
    """Builds and create calls that were written down: the two grow together, the ledger first."""


@dataclass(frozen=True)
class NewShard:
    """A request file that is to be planned."""

    round: int
    number: int
    key: str
    requests: int
    bytes: int
    tokens: int
    """Estimated input tokens."""
    model: str
    url: str
    largest: int = 0
    """Bytes of its longest line; 0 where an older version planned it."""
    provider: str = ""
    """Whose queue it goes into: the profile's name and address."""
    attempt: int = 1
    """Which attempt of its requests this is, from 1; what did not count as one is not counted."""
    reask: int = 0
    """How often its requests were asked again because their answers were invalid."""
    canary: int | None = None
    """The round whose first requests it holds, which are tried before the others."""

    @property
    def file_name(self) -> str:
        """Its name in the job's `requests` folder."""
        return f"{self.round:04d}-{self.number:04d}.jsonl"


@dataclass(frozen=True)
class Batch:
    """One attempt to have a shard answered."""

    id: int
    shard_id: int
    token: str
    state: State
    started_at: float
    creating_at: float | None = None
    """When the last create call was about to be made."""
    creates: int = 0
    """How many create calls were about to be made: more than one where a lost one was given up."""
    file_id: str | None = None
    batch_id: str | None = None
    status: str | None = None
    submitted_at: float | None = None
    deadline_at: float | None = None
    ended_at: float | None = None
    collected_at: float | None = None
    cancelled_by_us: bool = False
    account: str | None = None
    """The fingerprint of the account that it was sent with; None where an older version sent it."""
    rates: dict[str, Any] | None = None
    """What tokens cost when it was sent (`Rates.as_record`); None where nobody knew."""
    cost_usd: float | None = None
    """Of all its answers, each priced by its own tokens; None where a price or a count is not known."""
    trouble: str | None = None
    """Why it cannot be collected for now, though it may hold paid answers; None where all is well."""
    trouble_since: float | None = None
    absent_since: float | None = None
    """When a complete listing of its account lacked it first, and all since have."""
    look_at: float | None = None
    """Not looked at before this."""
    refused_for: str | None = None
    """What a refused attempt was turned away for: `file` (not there yet), `queue` (full), or `other`."""
    recovered: bool = False
    """Whether it was taken up from the provider's listing: its retries may have been sent before."""
    given_up: bool = False
    """Whether a person gave it up."""
    misses: int = 0
    """Looks that found it in trouble, in a row."""
    real_time: bool = False
    """Whether its requests were asked one by one, in real time: it has a journal in place of a batch."""
    cleaned: bool = False
    """Whether its files were deleted at the provider."""
    output_file_id: str | None = None
    error_file_id: str | None = None
    done: int | None = None
    failed: int | None = None
    errors: list[list[Any]] | None = None
    """Errors of the whole batch: code, message, line of the input file from 1 or None."""
    verdicts: dict[str, int] | None = None
    """How many requests got which verdict."""
    usage: dict[str, int] | None = None
    """Tokens of all its answers, whatever their verdict: input_tokens, output_tokens, cached_tokens; and `unmetered`,
    how many answers told none."""
    service_tiers: dict[str, int] | None = None
    """How many answers name which service tier."""
    hours: dict[str, int] | None = None
    """What ran in cheap hours, where the endpoint tells: off_peak_lines, peak_lines, off_peak_tokens, peak_tokens."""

    @property
    def lacks_answers(self) -> bool:
        """Whether requests of it were worked on, as far as anybody knows, whose answers never came."""
        return bool((self.verdicts or {}).get("missing"))

    @property
    def file_ids(self) -> list[str]:
        """Its files at the provider: input, output and error file, as far as they are known."""
        if self.real_time:
            return []
        return [file_id for file_id in (self.file_id, self.output_file_id, self.error_file_id) if file_id]


@dataclass(frozen=True, kw_only=True)
class Shard(NewShard):
    """A planned shard and all its attempts, oldest first."""

    id: int
    job: str
    settled: bool
    hold_until: float | None
    hold_reason: str | None
    """Why it was held back last; kept when it is sent."""
    batches: tuple[Batch, ...] = ()

    @property
    def sent(self) -> bool:
        """Whether it has, or may have, a batch at the provider, or files that are not collected."""
        return self.open_batch is not None and self.open_batch.state not in (State.UPLOADING, State.UPLOADED)

    @property
    def in_real_time(self) -> bool:
        """Whether its requests are being asked one by one."""
        return self.open_batch is not None and self.open_batch.real_time

    @property
    def open_batch(self) -> Batch | None:
        """The attempt that still has a step to take."""
        return next((batch for batch in self.batches if batch.state in OPEN), None)
