"""What the routes work with, and what they refuse."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from overnight.endpoint.api.batch_request import CreateBatch
from overnight.endpoint.api.metrics import Metrics
from overnight.endpoint.errors import ApiError
from overnight.endpoint.settings import package_version
from overnight.endpoint.storage.disk import Disk
from overnight.endpoint.storage.records import Batch, StoredFile, new_id, window_seconds
from overnight.endpoint.storage.store import Store
from overnight.endpoint.upstream.upstream import Upstream
from overnight.endpoint.work.backlog import Backlog
from overnight.endpoint.work.runner import Runner


@dataclass(frozen=True)
class Service:
    """The parts of a running server."""

    store: Store
    upstream: Upstream
    runner: Runner
    backlog: Backlog
    metrics: Metrics
    disk: Disk
    clock: Callable[[], float]
    """Unix time."""
    client_key: str | None = None
    hosts: frozenset[str] | None = None
    """What requests may call this server; None where they may call it anything."""
    max_open_batches: int = 100
    keep_seconds: int | None = None
    """How long files are kept where the client does not say; None for ever."""

    def file(self, file_id: str) -> StoredFile:
        """Return a file, or refuse with 404."""
        if file := self._kept(file_id):
            return file
        raise ApiError(404, f"No such File object: {file_id}", "id")

    def _kept(self, file_id: str) -> StoredFile | None:
        file = self.store.file(file_id)
        over = file is not None and file.expires_at is not None and file.expires_at <= self.clock()
        return None if over else file

    def batch(self, batch_id: str) -> Batch:
        """Return a batch, or refuse with 404."""
        if batch := self.store.batch(batch_id):
            return batch
        raise ApiError(404, f"No batch found with id '{batch_id}'.", "batch_id")

    def check_served(self, endpoint: str) -> None:
        """Refuse a path that the upstream does not answer."""
        if endpoint not in self.upstream.endpoints:
            served = ", ".join(self.upstream.endpoints)
            message = f"'{endpoint}' is not served by this endpoint ({self.upstream.name}). Served: {served}."
            raise ApiError(400, message, "endpoint", "invalid_value")

    def create_batch(self, wanted: CreateBatch, key: str | None) -> Batch:
        """Create a batch and start it; a request that comes again with its Idempotency-Key gets the batch it made."""
        digest = wanted.digest()
        if key is not None and (made := self.store.repeat_of(key)):
            if made.digest != digest:
                message = f"The Idempotency-Key '{key}' was used for another batch: send a new key with a new body."
                raise ApiError(409, message, code="idempotency_key_reused")
            return self.batch(made.batch_id)
        self.check_served(wanted.endpoint)
        file = self._kept(wanted.input_file_id)
        if file is None or file.purpose != "batch":
            why = "does not exist" if file is None else f"has the purpose '{file.purpose}', not 'batch'"
            raise ApiError(400, f"The input file '{wanted.input_file_id}' {why}.", "input_file_id", "invalid_value")
        if self.runner.open_batches >= self.max_open_batches:
            message = f"Too many batches are open: {self.max_open_batches}. Wait until one ends, or cancel one."
            raise ApiError(429, message, code="too_many_batches")
        self.disk.check(file.bytes)
        batch = self._new_batch(wanted)
        self.store.add_batch(batch, key, digest)
        self.runner.submit(batch.id)
        return batch

    def _new_batch(self, wanted: CreateBatch) -> Batch:
        now = int(self.clock())
        return Batch(
            id=new_id("batch_"),
            status="validating",
            endpoint=wanted.endpoint,
            input_file_id=wanted.input_file_id,
            completion_window=wanted.completion_window,
            created_at=now,
            expires_at=now + window_seconds(wanted.completion_window),
            metadata=msgspec.json.encode(wanted.metadata).decode() if wanted.metadata is not None else None,
            output_expires_after=wanted.output_expires_after.seconds if wanted.output_expires_after else None,
        )

    def health(self) -> dict[str, Any]:
        """Say whether the upstream answers right away, and what is served."""
        upstream = self.upstream
        return {
            "status": "ok" if upstream.ready else "starting",
            "ready": upstream.ready,
            "upstream": upstream.name,
            "endpoints": list(upstream.endpoints),
            "models": sorted(upstream.model_ids) if upstream.model_ids is not None else None,
            "version": package_version(),
            "open_batches": self.runner.open_batches,
            "queued_lines": self.backlog.lines,
            "off_peak": self.backlog.hours(),
        }
