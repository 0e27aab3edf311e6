"""doctor: tries an endpoint call by call, without spending anything. Not a step of a run."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import msgspec
from prefect import task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from overnight.errors import OvernightError
from overnight.job.job import ProviderChoice
from overnight.job.profiles import Profile
from overnight.providers.inline import InlineProvider
from overnight.providers.provider import Provider
from overnight.providers.replies import TERMINAL, RemoteBatch
from overnight.text import artifact_key, inline, table
from tasks.credentials import open_provider

NO_SUCH_MODEL = "overnight-doctor-no-such-model"
"""The model that is asked for: a batch of it fails validation, or every line, and is not billed."""
_NEEDED = frozenset({"reachable, and the key is good", "upload", "create a batch", "look at it"})
_LOOKS = 10
_LOOK_SECONDS = 0.3
"""Three seconds: a batch for an unknown model fails at once, or is cancelled after that."""


class Check(NamedTuple):
    """One thing that was tried."""

    what: str
    passed: bool | None
    """None where it could not be tried, because something before it failed."""
    detail: str

    @property
    def needed(self) -> bool:
        """Whether no job can run without it."""
        return self.what in _NEEDED


class Diagnosis(NamedTuple):
    """What was found."""

    checks: tuple[Check, ...]
    settings: tuple[str, ...]
    """What to set in a profile or a job for this endpoint."""
    text: str
    """All of it in Markdown."""

    @property
    def passed(self) -> bool:
        """Whether a job can run there: what is only a convenience (metadata, delete) may be missing."""
        return all(check.passed for check in self.checks if check.needed)


class Examination:
    """Makes the calls one after the other, and notes what comes of them."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._token = uuid4().hex
        self._file_id: str | None = None
        self._batch: RemoteBatch | None = None
        self.checks: list[Check] = []

    def run(self) -> None:
        """All checks."""
        self._try("reachable, and the key is good", self._reach)
        self._try("upload", self._upload)
        self._try("the upload is listed", self._find_file, needs=self._file_id)
        self._try("create a batch", self._create, needs=self._file_id)
        self._try("look at it", self._look, needs=self._batch)
        self._try("it is listed, with its metadata", self._list, needs=self._batch)
        self._try("cancel", self._cancel, needs=self._batch)
        self._try("delete files", self._delete, needs=self._file_id)

    def _try(self, what: str, step: Callable[[], str], needs: object = True) -> None:
        if needs is None:
            self.checks.append(Check(what, None, "not tried: what it needs failed"))
            return
        try:
            self.checks.append(Check(what, True, step()))
        except OvernightError as error:
            self.checks.append(Check(what, False, error.message))

    def _reach(self) -> str:
        self._provider.check()
        return self._provider.address

    def _upload(self) -> str:
        with self._requests() as path:
            self._file_id = self._provider.upload(path, self._name).id
        return f"purpose {self._provider.profile.purpose}, file {self._file_id}"

    @contextmanager
    def _requests(self) -> Iterator[Path]:
        """A request file with one request, which fails."""
        url = self._provider.profile.endpoints[0]
        body = {"model": NO_SUCH_MODEL, "messages": [{"role": "user", "content": "probe"}], "max_tokens": 1}
        line = {"custom_id": f"probe-{self._token}", "method": "POST", "url": url, "body": body}
        with tempfile.TemporaryDirectory(prefix="overnight-doctor-") as folder:
            path = Path(folder) / self._name
            path.write_bytes(msgspec.json.encode(line) + b"\n")
            yield path

    @property
    def _name(self) -> str:
        return f"overnight-doctor-{self._token}.jsonl"

    def _find_file(self) -> str:
        if isinstance(self._provider, InlineProvider):
            return "not needed: requests go with the create call"
        if all(file.name != self._name for file in self._provider.files()):
            raise OvernightError("not among the listed files: an upload whose reply is lost is made again")
        return "an upload whose reply is lost is found again"

    def _create(self) -> str:
        metadata = {"overnight_job": "doctor", "overnight_shard": self._token, "overnight_attempt": self._token}
        url = self._provider.profile.endpoints[0]
        with self._requests() as path:
            self._batch = self._provider.create(self._file_id or "", url, metadata, model=NO_SUCH_MODEL, requests=path)
        return f"batch {self._batch.id}, completion window {self._provider.profile.completion_window}"

    def _look(self) -> str:
        assert self._batch is not None  # noqa: S101 - `needs` says so
        for _ in range(_LOOKS):
            self._batch = self._provider.retrieve(self._batch.id)
            if self._batch.status in TERMINAL:
                break
            time.sleep(_LOOK_SECONDS)
        said = self._batch.error_text
        return f"status {self._batch.status}{f' ({said})' if said else ''}"

    def _list(self) -> str:
        assert self._batch is not None  # noqa: S101 - `needs` says so
        found = next((batch for batch in self._provider.batches() if batch.id == self._batch.id), None)
        if found is None:
            raise OvernightError("not among the listed batches: a lost reply cannot be found again there")
        if isinstance(self._provider, InlineProvider):
            return self._proven()
        if (found.metadata or {}).get("overnight_attempt") != self._token:
            return "listed, without its metadata: a lost reply is found by its input file"
        return "a lost reply is found again by its metadata"

    def _proven(self) -> str:
        """By its first result, once there is one."""
        assert isinstance(self._provider, InlineProvider)  # noqa: S101 - who asks has looked
        assert self._batch is not None  # noqa: S101 - `needs` says so
        if not self._batch.output_file_id:
            return "listed, and nameless: a lost reply is found once the batch has ended, by its first result"
        if self._provider.first_custom_id(self._batch.id) != f"probe-{self._token}":
            raise OvernightError("its results do not begin with its request: a lost reply cannot be found again there")
        return "a lost reply is found again by the batch's results, once it has ended"

    def _cancel(self) -> str:
        assert self._batch is not None  # noqa: S101 - `needs` says so
        if self._batch.status in TERMINAL:
            return f"not needed: the batch is {self._batch.status} already"
        self._provider.cancel(self._batch.id)
        return f"status {self._provider.retrieve(self._batch.id).status}"

    def _delete(self) -> str:
        files = [self._file_id, *((self._batch.output_file_id, self._batch.error_file_id) if self._batch else ())]
        for file_id in files:
            if file_id and "://" not in file_id:
                self._provider.delete(file_id)
        return "the files are gone"


def settings_for(profile: Profile, checks: tuple[Check, ...]) -> tuple[str, ...]:
    """What the checks mean for a job: settings to make, and limits to know."""
    passed = {check.what: check.passed for check in checks}
    found = [
        f"provider.profile: {profile.name}",
        *([f"provider.base_url: {profile.base_url}"] if profile.base_url else []),
    ]
    found.append(f"limits: at most {profile.max_requests:,} requests and {profile.max_bytes:,} bytes in a batch")
    if passed.get("it is listed, with its metadata") is False:
        found.append("its batches are not listed: after a lost reply a run cannot find its batch by itself")
    if passed.get("delete files") is False:
        found.append("cleanup: never")
    return tuple(found)


def diagnosis_text(profile: Profile, checks: tuple[Check, ...], settings: tuple[str, ...]) -> str:
    """The outcome in Markdown."""
    word = {True: "pass", False: "**FAIL**", None: "–"}
    rows = [
        (check.what, "yes" if check.needed else "no",
         "lacking" if check.passed is False and not check.needed else word[check.passed], inline(check.detail))
        for check in checks
    ]  # fmt: skip
    passed = all(check.passed for check in checks if check.needed)
    outcome = "A job can run there." if passed else "**No job can run there**: a check that is needed failed."
    lines = "\n".join(f"- {line}" for line in settings)
    notes = "\n".join(f"- {note}" for note in profile.notes)
    whole = table(["check", "needed", "result", "detail"], rows)
    return f"# {profile.name}\n\n{outcome}\n\n{whole}\n\n## Settings\n\n{lines}\n{notes}\n"


@task(name="doctor", task_run_name="doctor", cache_policy=NO_CACHE)
def examine(choice: ProviderChoice, home: Path) -> Diagnosis:
    """Tries an endpoint; its outcome is the artifact `doctor-<profile>` too.

    Raises:
        OvernightError: there is no address, no key, or no Batch API to be tried.
    """
    with open_provider(choice, home) as provider:
        examination = Examination(provider)
        examination.run()
        profile = provider.profile
    checks = tuple(examination.checks)
    settings = settings_for(profile, checks)
    text = diagnosis_text(profile, checks, settings)
    create_markdown_artifact(
        text, key=artifact_key("doctor", choice.profile), description=f"examination of {profile.name}"
    )
    return Diagnosis(checks, settings, text)
