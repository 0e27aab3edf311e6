"""A provider in this process, for the model of the submit protocol: the same seam, no network, a clock that jumps.

Every call passes two seams, one before its effect and one after it, where the model may kill or stop the caller.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from overnight.errors import NotFound, NotTaken, ProviderUnavailable, QueueFull, ReplyLost
from overnight.job.profiles import Profile
from overnight.providers.dialects.openai import OPENAI
from overnight.providers.inline import InlineProvider
from overnight.providers.provider import Provider
from overnight.providers.replies import TERMINAL, RemoteBatch, RemoteError, RemoteFile
from overnight.store.files import atomic_path
from tests.provider_server import answer_line, error_line

QUEUE_FULL = RemoteError("token_limit_exceeded", "Enqueued token limit reached", None)
NO_FILE = RemoteError("invalid_request", "Cannot find file", None)


@dataclass
class Plan:
    """What becomes of one create call and of its batch."""

    reply: str = "ok"
    """ok, lost (the batch is made), nothing (500, no batch), full (refused for now), or no_file."""
    lag: int = 0
    """Seconds until a listing shows the batch."""
    end: str = "completed"
    answered: int = 99
    """Requests that are worked on before it ends."""
    drop: int = -1
    """Position of a request whose line is left out, though it was billed."""
    failing: int = -1
    """Position of a request that gets HTTP 500."""
    errors: tuple[RemoteError, ...] = ()


@dataclass
class Made:
    """A batch at the provider."""

    id: str
    file: str
    metadata: Mapping[str, str]
    at: float
    plan: Plan
    ids: list[str]
    status: str = "validating"
    files: dict[str, str] = field(default_factory=dict)
    delivered: set[str] = field(default_factory=set)
    """Requests whose answer stands in the output file."""


class ModelProvider(Provider):
    """Answers at once; works when it is told to. Its batches are known again by `evidence`."""

    def __init__(self, profile: Profile, seam: Callable[[], None], evidence: str) -> None:
        self.profile, self.address = profile, profile.base_url or ""
        self._seam, self._evidence = seam, evidence
        self.skew = 0.0
        self.plans: list[Plan] = []
        self.trouble: Counter[str] = Counter()
        """How many of the next calls of a kind fail: upload (it arrives), list, retrieve, missing (404), download."""
        self.made: dict[str, Made] = {}
        self.uploads: dict[str, tuple[str, bytes]] = {}
        self.billed: dict[str, list[str]] = {}
        """By custom_id: the batches that worked on it, and `asked` for each request in real time, in their order."""
        self.dialect = OPENAI

    def now(self) -> float:
        """Unix seconds, as far as time was made to jump."""
        return time.time() + self.skew

    def _fails(self, kind: str) -> bool:
        failing = self.trouble[kind] > 0
        self.trouble[kind] -= failing
        return failing

    def upload(self, path: Path, name: str | None = None) -> RemoteFile:
        self._seam()
        file_id = f"file-{len(self.uploads)}"
        self.uploads[file_id] = (name or path.name, path.read_bytes())
        self._seam()
        if self._fails("upload"):
            raise ProviderUnavailable("the upload's reply was lost")
        return self.file(file_id)

    def file(self, file_id: str) -> RemoteFile:
        name, content = self.uploads[file_id]
        return RemoteFile(file_id, name, len(content), ready=True)

    @property
    def secret_identity(self) -> str:
        return "the one account"

    def files(self) -> Iterator[RemoteFile]:
        self._seam()
        yield from [self.file(file_id) for file_id in self.uploads]

    def create(
        self,
        file_id: str,
        url: str,  # noqa: ARG002 - the seam's
        metadata: Mapping[str, str],
        until: float = 0,
        model: str = "",  # noqa: ARG002 - the seam's
        requests: Path | None = None,
    ) -> RemoteBatch:
        before = self.skew
        self._seam()
        if time.time() + self.skew - before > until:
            raise ReplyLost("too late to be sent")
        plan = self.plans.pop(0) if self.plans else Plan()
        if plan.reply == "full":
            raise QueueFull("too many batches in progress")
        if plan.reply == "no_file":
            raise ProviderUnavailable("Cannot find file")
        if plan.reply == "nothing":
            raise ReplyLost("500")
        made = self.make(file_id, metadata, plan, self._requests(file_id, requests))
        self._seam()
        if plan.reply == "lost":
            raise ReplyLost("cut")
        return self._told(made)

    def make(self, file_id: str, metadata: Mapping[str, str], plan: Plan, ids: list[str]) -> Made:
        """Makes a batch."""
        made = Made(f"batch-{len(self.made)}", file_id, dict(metadata), self.now(), plan, ids)
        self.made[made.id] = made
        return made

    def _requests(self, file_id: str, requests: Path | None) -> list[str]:  # noqa: ARG002 - for who has no files
        return [json.loads(line)["custom_id"] for line in self.uploads[file_id][1].splitlines()]

    def _told(self, made: Made) -> RemoteBatch:
        # Times are told as the ledger has them: it was moved back by as much as the clock has jumped since.
        return RemoteBatch(made.id, made.status, made.file if self._evidence in ("both", "file") else None,
                           made.files.get("output"), made.files.get("error"), total=len(made.ids),
                           created_at=made.at - self.skew, errors=made.plan.errors if made.status == "failed" else (),
                           metadata=made.metadata if self._evidence in ("both", "metadata") else None)  # fmt: skip

    def answer(self, line: bytes, until: float = 0) -> bytes:
        before = self.skew
        self._seam()
        if time.time() + self.skew - before > until:
            raise NotTaken("too late to be sent", 0.0)
        if self._fails("busy"):
            raise NotTaken("429", 0.0)
        asked = json.loads(line)
        self.billed.setdefault(asked["custom_id"], []).append("asked")
        self._seam()
        if self._fails("answer"):
            raise ReplyLost("cut")
        return json.dumps(answer_line(asked, 1, "openai")).encode() + b"\n"

    def retrieve(self, batch_id: str) -> RemoteBatch:
        self._seam()
        if self._fails("retrieve"):
            raise ProviderUnavailable("502")
        if self._fails("missing"):
            raise NotFound("404")
        return self._told(self.made[batch_id])

    def batches(self, since: float = 0) -> Iterator[RemoteBatch]:  # noqa: ARG002 - the seam's
        self._seam()
        if self._fails("list"):
            raise ProviderUnavailable("503")
        shown = [self._told(made) for made in self.made.values() if made.at + made.plan.lag <= self.now()]
        self._seam()
        yield from reversed(shown)

    def cancel(self, batch_id: str) -> None:
        self._seam()
        if self.made[batch_id].status not in TERMINAL:
            self.made[batch_id].status = "cancelling"
        self._seam()

    def download(self, file_id: str, path: Path) -> int:
        self._seam()
        if self._fails("download"):
            raise ProviderUnavailable("cut")
        with atomic_path(path) as part:
            return part.write_bytes(self.uploads[file_id][1])

    def work(self, *, only: int | None = None) -> None:
        """Ends the open batches, or one of them, as they were planned; what they worked on is billed."""
        waiting = [made for made in self.made.values() if made.status not in TERMINAL]
        for made in waiting if only is None else waiting[only : only + 1]:
            self._end(made, "cancelled" if made.status == "cancelling" else made.plan.end)

    def _end(self, made: Made, end: str) -> None:
        made.status = end
        if end == "failed":
            return
        lines: dict[str, list[dict[str, Any]]] = {"output": [], "error": []}
        worked = made.ids if end == "completed" else made.ids[: made.plan.answered]
        if end == "cancelled" and made.at + 60 > self.now():
            worked = []  # it had not begun
        for at, custom_id in enumerate(made.ids):
            if custom_id not in worked:
                lines["error"].append(error_line(custom_id, f"batch_{end}", "openai"))
                continue
            self.billed.setdefault(custom_id, []).append(made.id)
            text = "[500]" if at == made.plan.failing else "fine"
            request = {"custom_id": custom_id, "body": {"messages": [{"role": "user", "content": text}]}}
            if at != made.plan.drop:
                lines["error" if at == made.plan.failing else "output"].append(answer_line(request, 1, "openai"))
        for kind, found in lines.items():
            if found:
                made.files[kind] = f"{made.id}-{kind}"
                text = "".join(json.dumps(line) + "\n" for line in found)
                self.uploads[made.files[kind]] = (made.files[kind], text.encode())
        made.delivered = {line["custom_id"] for line in lines["output"]}


class NamelessProvider(ModelProvider, InlineProvider):
    """The same without files and marks, as Anthropic is: a batch is known by its results, and has some."""

    def upload(self, path: Path, name: str | None = None) -> RemoteFile:
        self._seam()
        return InlineProvider.upload(self, path, name)

    def file(self, file_id: str) -> RemoteFile:
        return RemoteFile(file_id, file_id, None, ready=True)

    def _requests(self, file_id: str, requests: Path | None) -> list[str]:  # noqa: ARG002 - for who has files
        lines = requests.read_bytes().splitlines() if requests else []
        return [json.loads(line)["custom_id"] for line in lines]

    def first_custom_id(self, batch_id: str) -> str | None:
        self._seam()
        if self._fails("download"):
            raise ProviderUnavailable("cut")
        results = self.uploads[self.made[batch_id].files["output"]][1]
        return str(json.loads(results.splitlines()[0])["custom_id"]) if results else None

    def _end(self, made: Made, end: str) -> None:
        if len(made.ids) == 1:
            made.plan = replace(made.plan, drop=-1)
        super()._end(made, "completed" if end == "failed" else end)
        parts = [self.uploads[made.files[kind]][1] for kind in ("output", "error") if kind in made.files]
        made.files = {"output": f"{made.id}-results"}
        self.uploads[made.files["output"]] = (made.files["output"], b"".join(parts))
