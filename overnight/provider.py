"""The provider: the Files and Batches calls, made through the openai SDK and read with suspicion.

The SDK validates no reply (a missing field is None, a page of HTML a `str`), retries a create that may have made a paid
batch, and lists without end where a server does not page. All of that is settled here; the rest of overnight sees
`RemoteBatch` and the errors of `overnight.errors`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

import httpx2
import openai

from overnight.errors import (
    DownloadCut,
    NoBatchApi,
    NotFound,
    OvernightError,
    ProviderError,
    ProviderUnavailable,
    QueueFull,
    ReplyLost,
    Unauthorized,
)
from overnight.files import atomic_path
from overnight.profiles import Profile
from overnight.wire import status_word

MAX_LIST_PAGES = 50
_PAGE = 100
_UPLOAD_SECONDS_PER_MB = 5
_DOWNLOAD_TRIES = 4
_QUEUE_FULL = re.compile(
    r"token_limit_exceeded|enqueued token|queue.{0,20}full|too many batches|batches in progress", re.IGNORECASE
)

_OUTPUT_EXPIRY: Any = {"anchor": "created_at", "seconds": 30 * 86_400}
_FATAL = re.compile(r"quota|billing|permission|api_key|unauthorized|account", re.IGNORECASE)


class RemoteError(NamedTuple):
    """One error of a whole batch, such as a line that failed validation."""

    code: str
    message: str
    line: int | None
    """Line of the input file, from 1."""


@dataclass(frozen=True)
class RemoteBatch:
    """A batch as the provider describes it, in OpenAI's words; what it does not say is None."""

    id: str
    status: str
    input_file_id: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    done: int | None = None
    failed: int | None = None
    total: int | None = None
    created_at: float | None = None
    errors: tuple[RemoteError, ...] = ()
    metadata: Mapping[str, str] | None = None

    @property
    def queue_full(self) -> bool:
        """It failed because the account's queue is full, not because of its lines."""
        return self.status == "failed" and any(_QUEUE_FULL.search(f"{e.code} {e.message}") for e in self.errors)

    @property
    def file_missing(self) -> bool:
        """It failed because its input file is not there yet; seen right after uploads (openai-dotnet#312)."""
        return self.status == "failed" and any("cannot find file" in e.message.lower() for e in self.errors)

    @property
    def fatal(self) -> bool:
        """It failed because of the account: every other batch would too."""
        return self.status == "failed" and any(_FATAL.search(e.code) for e in self.errors)

    @property
    def error_text(self) -> str | None:
        """The errors of the whole batch in one line."""
        said = [f"line {e.line}: {e.message}" if e.line else f"{e.code}: {e.message}" for e in self.errors[:5]]
        return "; ".join(said) or None


class Provider:
    """One account at one provider; a context that closes its connections."""

    def __init__(self, profile: Profile, api_key: str | None = None) -> None:
        """Makes a client; nothing is sent.

        Args:
            profile: who it is.
            api_key: the key, where it is not in the profile's environment variable.

        Raises:
            NoBatchApi: the profile has no Batch API.
            ProviderError: there is no address.
            Unauthorized: there is no key.
        """
        self.profile = profile
        if not profile.has_batch_api:
            raise NoBatchApi(without_batch_api(profile))
        if not profile.base_url:
            raise ProviderError(f"the profile {profile.name!r} has no address: set provider.base_url")
        self.address = profile.base_url
        key = api_key or _key_from_environment(profile)
        self._client = openai.OpenAI(base_url=self.address, api_key=key, max_retries=2, timeout=60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def check(self) -> None:
        """Asks for the newest batch: shows that address, key and Batch API are there, and costs nothing.

        Raises:
            Unauthorized, NoBatchApi, ProviderUnavailable, ProviderError: as the reply says.
        """
        try:
            page = self._page(1, None)
        except NotFound as error:
            raise NoBatchApi(
                f"{self.address} has no Batch API ({error.message}); check provider.base_url (most end in /v1), or put "
                "`overnight endpoint --upstream` before it"
            ) from None
        if page is None:
            raise NoBatchApi(f"{self.address} answers with a page that is no API reply; check provider.base_url")

    def _page(self, limit: int, after: str | None) -> dict[str, Any] | None:
        """One page of the list of batches; None where the reply is not one.

        The call goes around the SDK's page object, which fails on a page of HTML or a bare list (Together).
        """
        query = {"limit": limit, "after": after} if after else {"limit": limit}
        with self._translated("list batches"):
            page: Any = self._client.get("/batches", cast_to=object, options={"params": query})
        if isinstance(page, list):
            return {"data": page}
        return page if isinstance(page, dict) and isinstance(page.get("data"), list) else None

    def upload(self, path: Path, name: str | None = None) -> str:
        """Uploads a request file, streamed, under its own or another name; returns its file id. Costs nothing."""
        size = path.stat().st_size
        timeout = max(600.0, size / 1e6 * _UPLOAD_SECONDS_PER_MB)
        with self._translated("upload"), path.open("rb") as stream:
            uploaded = self._client.files.create(
                file=(name or path.name, stream, "application/jsonl"),
                purpose=_as_purpose(self.profile.purpose),
                timeout=timeout,
            )
        fields = _unwrapped(uploaded)
        file_id = fields.get("id")
        if not isinstance(file_id, str):
            raise ProviderUnavailable(f"the upload of {path.name} was answered without a file id")
        if isinstance(arrived := fields.get("bytes"), int) and arrived not in (0, size):
            raise ProviderUnavailable(f"{path.name} has {size:,} bytes, {arrived:,} arrived")
        return file_id

    def create(self, file_id: str, url: str, metadata: Mapping[str, str]) -> RemoteBatch:
        """Creates a batch: the call that costs money. Sent exactly once.

        Raises:
            ReplyLost: it may or may not have made a batch.
            QueueFull: the provider takes no more for now; no batch was made.
            ProviderError: it was refused; no batch was made.
        """
        once = self._client.with_options(max_retries=0, timeout=120)
        try:
            made = once.batches.create(
                input_file_id=file_id,
                endpoint=_as_endpoint(url),
                completion_window=_as_window(self.profile.completion_window),
                metadata=dict(metadata),
                output_expires_after=_OUTPUT_EXPIRY if self.profile.expires_outputs else openai.omit,
            )
        except openai.APIStatusError as error:
            if error.status_code >= 500 or error.status_code in (408, 409):
                raise ReplyLost(f"the create call was answered with HTTP {error.status_code}") from None
            raise _translate(error, "create batch", self.address) from None
        except openai.APIConnectionError as error:
            if _never_sent(error):
                raise _translate(error, "create batch", self.address) from None
            raise ReplyLost(f"the create call got no answer: {_cause(error)}") from None
        except openai.OpenAIError as error:
            raise ReplyLost(f"the create call's answer cannot be read: {error}") from None
        batch = _remote(made)
        if batch is None:
            raise ReplyLost("the create call was answered without a batch id")
        return batch

    def retrieve(self, batch_id: str) -> RemoteBatch:
        """Looks at one batch."""
        with self._translated(f"retrieve {batch_id}"):
            found = _remote(self._client.batches.retrieve(batch_id))
        if found is None:
            raise ProviderUnavailable(f"the answer about {batch_id} is not a batch")
        return found

    def batches(self, since: float = 0) -> Iterator[RemoteBatch]:
        """The batches of the account, newest first as providers list them.

        Stops when a page repeats an id: servers that ignore `after` would be listed for ever.

        Args:
            since: Unix seconds; a page of older batches, in order, ends the listing.

        Raises:
            ProviderUnavailable: a page cannot be read, or there are more than `MAX_LIST_PAGES`: the listing is not
                complete, and nothing may be concluded from it.
        """
        seen: set[str] = set()
        after: str | None = None
        for _ in range(MAX_LIST_PAGES):
            page = self._page(_PAGE, after)
            if page is None:
                raise ProviderUnavailable("the list of batches cannot be read")
            found = [batch for batch in map(_remote, page["data"]) if batch is not None]
            if len(found) < len(page["data"]):
                raise ProviderUnavailable("the list of batches has entries that cannot be read")
            if not found or found[0].id in seen:
                return
            yield from found
            seen.update(batch.id for batch in found)
            if page.get("has_more") is False or _all_before(found, since):
                return
            after = found[-1].id
        raise ProviderUnavailable(f"the list of batches goes on after {MAX_LIST_PAGES} pages")

    def cancel(self, batch_id: str) -> None:
        """Asks for a batch to be cancelled; one that has ended already stays as it is."""
        try:
            with self._translated(f"cancel {batch_id}"):
                self._client.batches.cancel(batch_id)
        except ProviderError as error:
            if isinstance(error, Unauthorized | NotFound):
                raise

    def download(self, file_id: str, path: Path) -> int:
        """Streams a file to `path`, whole or not at all; returns its bytes.

        Raises:
            DownloadCut: it kept arriving with fewer bytes than announced.
        """
        for attempt in range(_DOWNLOAD_TRIES):
            try:
                return self._download_once(file_id, path)
            except DownloadCut:
                if attempt == _DOWNLOAD_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _download_once(self, file_id: str, path: Path) -> int:
        with self._translated(f"download {file_id}"), self._opened(file_id) as reply, atomic_path(path) as part:
            announced = reply.headers.get("content-length")
            arrived = 0
            try:
                with part.open("wb") as stream:
                    for chunk in reply.iter_bytes(1 << 18):
                        stream.write(chunk)
                        arrived += len(chunk)
            except httpx2.RemoteProtocolError as error:
                raise DownloadCut(f"the download of {file_id} was cut after {arrived:,} bytes: {error}") from None
            if announced is None or reply.headers.get("content-encoding"):
                announced = self._size(file_id)
            if (int(announced) != arrived) if announced is not None else not _ends_whole(part):
                raise DownloadCut(f"the download of {file_id} has {arrived:,} of {announced or 'more'} bytes")
            return arrived

    def _size(self, file_id: str) -> int | None:
        """A file's size as the provider has it: a reply without a length can end anywhere unnoticed."""
        if file_id.startswith(("http://", "https://")):
            return None
        try:
            size = _unwrapped(self._client.files.retrieve(file_id)).get("bytes")
        except openai.OpenAIError:
            return None
        return size if isinstance(size, int) and size > 0 else None

    @contextmanager
    def _opened(self, file_id: str) -> Iterator[Any]:
        """A streamed file. An id that is a URL (SiliconFlow) is fetched as it is, without the key."""
        if file_id.startswith(("http://", "https://")):
            with httpx2.stream("GET", file_id, follow_redirects=True, timeout=600) as reply:
                if reply.status_code == 404:
                    raise NotFound("the result's address answers 404: it has expired")
                if reply.status_code >= 400:
                    raise ProviderUnavailable(f"the result's address answers HTTP {reply.status_code}")
                yield reply
        else:
            with self._client.with_options(timeout=600).files.with_streaming_response.content(file_id) as reply:
                yield reply

    def find_file(self, name: str, size: int) -> str | None:
        """The id of a batch input file of this name and size, such as one whose upload's reply was lost."""
        query = {"purpose": self.profile.purpose, "limit": 1000}
        try:
            page: Any = self._client.get("/files", cast_to=object, options={"params": query})
        except (openai.OpenAIError, httpx2.HTTPError):
            return None  # a second upload costs nothing
        files = page.get("data") if isinstance(page, dict) else None
        for file in files if isinstance(files, list) else ():
            if isinstance(file, dict) and (file.get("filename"), file.get("bytes")) == (name, size):
                return str(file.get("id"))
        return None

    def delete(self, file_id: str) -> None:
        """Deletes a file; one that is gone already is fine."""
        try:
            with self._translated(f"delete {file_id}"):
                self._client.files.delete(file_id)
        except NotFound:
            return

    @contextmanager
    def _translated(self, call: str) -> Iterator[None]:
        try:
            yield
        except openai.OpenAIError as error:
            raise _translate(error, call, self.address) from None
        except httpx2.HTTPError as error:
            raise ProviderUnavailable(f"{call}: {_cause(error)}") from None


def without_batch_api(profile: Profile) -> str:
    """What to tell somebody who names a provider that has none."""
    return (
        f"{profile.name} has no Batch API at {profile.base_url}. Put overnight's own before it:\n"
        f"    overnight endpoint --upstream {profile.base_url} --key-env {profile.api_key_env}\n"
        "and set in the job: provider: {profile: custom, base_url: http://127.0.0.1:8642/v1}"
    )


def _key_from_environment(profile: Profile) -> str:
    if profile.api_key_env is None:
        return "none"
    if key := os.environ.get(profile.api_key_env):
        return key
    if profile.name == "custom":
        return "none"
    raise Unauthorized(f"no key for {profile.name}: set the environment variable {profile.api_key_env}")


def _translate(error: openai.OpenAIError, call: str, address: str) -> OvernightError:
    """An SDK error as one of ours. Texts of replies are kept short, and never hold the key."""
    if isinstance(error, openai.APIConnectionError):
        return ProviderUnavailable(f"cannot reach {address} ({call}): {_cause(error)}")
    if not isinstance(error, openai.APIStatusError):
        return ProviderUnavailable(f"{call}: {type(error).__name__}")
    status, said = error.status_code, _said(error)
    message = f"{address} answers {call} with HTTP {status}: {said}"
    if status in (401, 403):
        return Unauthorized(f"{message}; check the key")
    if status == 402 or "insufficient_quota" in said or "billing" in said:
        return ProviderError(f"{message}; the account cannot pay")
    if _QUEUE_FULL.search(said):
        return QueueFull(message)
    if "cannot find file" in said.lower():
        return ProviderUnavailable(message)
    if status in (404, 405):
        return NotFound(message)
    if status in (408, 409, 429) or status >= 500:
        return ProviderUnavailable(message)
    return ProviderError(message)


def _said(error: openai.APIStatusError) -> str:
    body: Any = error.body
    if isinstance(body, dict):
        body = body.get("message") or body.get("detail") or body.get("error") or body
        code = error.code or ""
        return f"{code} {body}".strip()[:300]
    return re.sub(r"\s+", " ", str(body or error.message)).strip()[:200]


def _cause(error: BaseException) -> str:
    """The innermost reason, without addresses' query strings."""
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {error}".split("?")[0][:200]


def _never_sent(error: openai.APIConnectionError) -> bool:
    """The connection was not even opened, so no batch can have been made."""
    cause = error.__cause__
    return isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.PoolTimeout)


def _unwrapped(reply: Any) -> dict[str, Any]:
    """The object of a reply as a dict: bare, or in an envelope under `data` (SiliconFlow) or `job` (Together)."""
    fields = reply if isinstance(reply, dict) else reply.to_dict() if hasattr(reply, "to_dict") else {}
    for envelope in ("data", "job"):
        if fields.get("id") is None and isinstance(fields.get(envelope), dict):
            fields = fields[envelope]
    return dict(fields)


def _remote(reply: Any) -> RemoteBatch | None:
    """A reply as a batch; None where it is not one."""
    fields = _unwrapped(reply)
    if not isinstance(fields.get("id"), str):
        return None
    counts = fields.get("request_counts")
    count: Callable[[str], int | None] = lambda name: _whole(counts.get(name)) if isinstance(counts, dict) else None  # noqa: E731
    metadata = fields.get("metadata")
    created = fields.get("created_at")
    return RemoteBatch(
        id=fields["id"],
        status=status_word(fields.get("status")),
        input_file_id=fields.get("input_file_id"),
        output_file_id=fields.get("output_file_id") or None,
        error_file_id=fields.get("error_file_id") or None,
        done=count("completed"),
        failed=count("failed"),
        total=count("total"),
        created_at=float(created) if isinstance(created, int | float) else None,
        errors=tuple(_errors(fields.get("errors"))),
        metadata={str(k): str(v) for k, v in metadata.items()} if isinstance(metadata, dict) else None,
    )


def _ends_whole(path: Path) -> bool:
    """Whether the last line of a file is whole JSON."""
    with path.open("rb") as stream:
        last = b""
        for line in stream:
            last = line if line.strip() else last
    try:
        json.loads(last or b"{}")
    except ValueError:
        return False
    return True


def _all_before(batches: list[RemoteBatch], since: float) -> bool:
    times = [batch.created_at for batch in batches if batch.created_at is not None]
    return len(times) == len(batches) and times == sorted(times, reverse=True) and times[0] < since


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _errors(errors: Any) -> Iterator[RemoteError]:
    """Errors as a list object (OpenAI), a bare list (DigitalOcean), or text (Novita)."""
    listed = errors.get("data") if isinstance(errors, dict) else errors
    for error in listed if isinstance(listed, list) else [listed] if listed else []:
        if isinstance(error, dict):
            yield RemoteError(
                str(error.get("code") or "error"), str(error.get("message") or ""), _whole(error.get("line"))
            )
        else:
            yield RemoteError("error", str(error), None)


# The SDK's literal types are narrower than what providers take: "batch-api", "336h", "/v1/chat/ds-test".
def _as_purpose(value: str) -> Any:
    return value


def _as_window(value: str) -> Any:
    return value


def _as_endpoint(value: str) -> Any:
    return value
