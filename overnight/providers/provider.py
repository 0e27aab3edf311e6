"""The provider: the Files and Batches calls, made through the openai SDK and read with suspicion.

The SDK validates no reply (a missing field is None, a page of HTML a `str`), retries a create that may have made a paid
batch, and lists without end where a server does not page. All of that is settled here; the rest of overnight sees
`RemoteBatch` and the errors of `overnight.errors`.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import httpx2
import msgspec
import openai

from overnight.errors import (
    DownloadCut,
    FileNotThere,
    NoBatchApi,
    NotFound,
    NotTaken,
    OvernightError,
    ProviderError,
    ProviderUnavailable,
    Refused,
    ReplyLost,
    Unauthorized,
)
from overnight.job.profiles import Profile, require_batch_api
from overnight.providers.dialects import dialect_of
from overnight.providers.dialects.dialect import Order, Page, bearer
from overnight.providers.download import is_address, opened_address, receive
from overnight.providers.pages import pages
from overnight.providers.replies import (
    RemoteBatch,
    RemoteFile,
    all_before,
    error_text,
    names_file,
    refusal,
    remote_file,
)
from overnight.providers.sdk_errors import cause_of, never_sent, standing, translated, wanted_pause, whole_body
from overnight.rows.lines import custom_id_of

UPLOAD_SECONDS_PER_MB = 5
"""A time limit that 200 MB over a home line keep; the SDK's 10 minutes would cut it."""
_DOWNLOAD_TRIES = 4
_ANSWER_SECONDS = 600
_NO_KEY = "none"
_OPENAIS = ("Authorization", "OpenAI-Organization", "OpenAI-Project")
"""Headers that are nobody else's business."""


class Provider:
    """One account at one provider; a context that closes its connections."""

    _cancels = "/cancel"

    def __init__(
        self,
        profile: Profile,
        api_key: str | None = None,
        organization: str | None = None,
        project: str | None = None,
    ) -> None:
        """Makes a client; nothing is sent.

        Args:
            profile: who it is.
            api_key: the key, where it is not in the profile's environment variable.
            organization: sent as `OpenAI-Organization`.
            project: sent as `OpenAI-Project`.

        Raises:
            NoBatchApi: the profile has no Batch API.
            ProviderError: there is no address.
            Unauthorized: there is no key.
        """
        self.profile, self.dialect = profile, dialect_of(profile)
        require_batch_api(profile)
        if not profile.base_url:
            raise ProviderError(f"the profile {profile.name!r} has no address: set provider.base_url")
        self.address = profile.base_url
        key = api_key or _key_from_environment(profile)
        self._has_key = key != _NO_KEY
        self._account = (profile.base_url.rstrip("/"), key, organization or "", project or "")
        self._headers = dict(self.dialect.headers(key))
        strange = self.dialect.headers is not bearer
        self._client = openai.OpenAI(
            base_url=self.address, api_key=key, organization=organization, project=project, max_retries=2, timeout=60,
            default_headers=self._headers if strange else None,
            http_client=unredirected(*_OPENAIS) if strange else None,
        )  # fmt: skip

    @property
    def secret_identity(self) -> str:
        """What tells this account from others, the key among it: only ever to be hashed."""
        return "\0".join(self._account)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._client.close()

    def check(self) -> None:
        """Asks for the newest batch: shows that address, key and Batch API are there, and costs nothing.

        Raises:
            Unauthorized, NoBatchApi, ProviderUnavailable, ProviderError: as the reply says.
        """
        try:
            page = self._page(self.dialect.batches, Page(0, 1, None))
        except NotFound as error:
            raise NoBatchApi(
                f"{self.address} has no Batch API ({error.message}); check provider.base_url (most end in /v1), or put "
                "`overnight endpoint --upstream` before it"
            ) from None
        if page is None:
            raise NoBatchApi(f"{self.address} answers with a page that is no API reply; check provider.base_url")

    def _page(self, path: str, page: Page) -> dict[str, Any] | None:
        """One page of a list, of batches or files; None where the reply is not one.

        The call goes around the SDK's page object, which fails on a page of HTML or a bare list (Together).
        """
        with self._translated(f"list {path.rpartition('/')[2]}"):
            found: Any = self._client.get(path, cast_to=object, options={"params": self.dialect.page(page)})
        if isinstance(found, list):
            found = {"data": found}
        return found if isinstance(found, dict) and isinstance(self.dialect.entries(found), list) else None

    def upload(self, path: Path, name: str | None = None) -> RemoteFile:
        """Uploads a request file, streamed, under its own or another name. Costs nothing."""
        size = path.stat().st_size
        timeout = max(600.0, size / 1e6 * UPLOAD_SECONDS_PER_MB)
        with self._translated("upload"), path.open("rb") as stream:
            uploaded = self._client.files.create(
                file=(name or path.name, stream, "application/jsonl"),
                purpose=_as_purpose(self.profile.purpose),
                timeout=timeout,
            )
        found = remote_file(uploaded)
        return arrived(found, path.name, size)

    def create(
        self,
        file_id: str,
        url: str,
        metadata: Mapping[str, str],
        until: float = math.inf,
        model: str = "",
        requests: Path | None = None,
    ) -> RemoteBatch:
        """Creates a batch: the call that costs money. Sent at most once.

        Args:
            file_id: of the uploaded requests.
            url: their endpoint.
            metadata: by which the batch is found again.
            until: Unix seconds after which the call is not sent any more: a process that was stopped in between does
                not know what others did meanwhile.
            model: of the requests, where it is one.
            requests: the file of the requests, for a provider that has no files.

        Raises:
            ReplyLost: it may or may not have made a batch, or came too late.
            FileNotThere: the file is not known yet; no batch was made.
            QueueFull: the provider takes no more for now; no batch was made.
            ProviderError: it was refused; no batch was made.
        """
        # The SDK repeats a create that was answered with a 5xx or not at all, and sends no Idempotency-Key: one call,
        # two paid batches. Whether the first made one is asked of the listing instead.
        once = self._client.with_options(max_retries=0, timeout=120)
        window, expires = self.profile.completion_window, self.profile.expires_outputs
        lines, caches = lines_of(requests) if requests else (), self.profile.caches_system
        order = Order(file_id, url, model, metadata, window, expires, lines, caches)
        try:
            made = self._ordered(once, order, until)
        except openai.APIStatusError as error:
            if error.status_code >= 500 or error.status_code in (408, 409):
                raise ReplyLost(f"the create call was answered with HTTP {error.status_code}") from None
            refused = self._refused(error, "create batch")
            if error.status_code == 404 and names_file(refused.message, file_id):
                raise FileNotThere(refused.message) from None
            raise refused from None
        except openai.APIConnectionError as error:
            if never_sent(error):
                raise self._refused(error, "create batch") from None
            raise ReplyLost(f"the create call got no answer: {cause_of(error)}") from None
        except (openai.OpenAIError, ValueError) as error:
            raise ReplyLost(f"the create call's answer cannot be read: {error}") from None
        batch = self.dialect.read(made)
        if batch is None:
            raise ReplyLost("the create call was answered without a batch id")
        return batch

    def _ordered(self, once: openai.OpenAI, order: Order, until: float) -> Any:
        """The create call itself."""
        check_time(until)
        body = b"".join(self.dialect.order(order))
        return posted(once, self.dialect.batches, body, len(body))

    def answer(self, line: bytes, until: float = math.inf) -> bytes:
        """Has one request answered in real time: it costs money, and is sent once.

        Args:
            line: of a request file.
            until: Unix seconds after which it is not sent any more.

        Returns:
            A line of a result file; refusals of this request alone are answers too.

        Raises:
            ReplyLost: it was sent, and may have been answered.
            NotTaken: it was not looked at, and can be sent again.
            Refused: it was refused in a way that the account's other requests may share.
            ProviderError: no request of this account will be taken.
        """
        asked, custom_id = self.dialect.question(line), custom_id_of(line)
        if time.time() > until:
            raise NotTaken("it came too late to be sent", 0.0)
        try:
            client = self._real_time_client().with_options(max_retries=0, timeout=_ANSWER_SECONDS)
            body = client.post(asked.path, cast_to=object, body=dict(asked.body))
        except openai.APIStatusError as error:
            found = self._answer_line(custom_id, error.status_code, whole_body(error))
            refused = self._refused(error, "a request")
            match standing(error):
                case "lost":
                    raise ReplyLost(f"a request was answered with HTTP {error.status_code}") from None
                case "not taken":
                    raise NotTaken(refused.message, wanted_pause(error)) from None
                case "account":
                    raise ProviderError(refused.message) from None
                case "maybe all":
                    raise Refused(refused.message, found) from None
                case "this one":
                    return found
        except openai.APIConnectionError as error:
            if never_sent(error):
                raise NotTaken(self._refused(error, "a request").message) from None
            raise ReplyLost(f"a request got no answer: {cause_of(error)}") from None
        except (openai.OpenAIError, ValueError) as error:
            raise ReplyLost(f"the answer to a request cannot be read: {error}") from None
        if not isinstance(body, dict):
            raise ReplyLost("a request was answered with a page that is no answer")
        return self._answer_line(custom_id, 200, body)

    def _answer_line(self, custom_id: str, status: int, body: Any) -> bytes:
        """A reply as a line of a result file, without the key, which a server may echo."""
        line = msgspec.json.encode(self.dialect.answer(custom_id, status, body)) + b"\n"
        return line.replace(self._client.api_key.encode(), b"***") if self._has_key else line

    def _real_time_client(self) -> openai.OpenAI:
        return self._client

    def retrieve(self, batch_id: str) -> RemoteBatch:
        """Looks at one batch."""
        with self._translated(f"retrieve {batch_id}"):
            found = self.dialect.read(self._client.get(self._path(batch_id), cast_to=object))
        if found is None:
            raise ProviderUnavailable(f"the answer about {batch_id} is not a batch")
        return found

    def _path(self, batch_id: str) -> str:
        return f"{self.dialect.batches}/{quote(batch_id, safe='')}"

    def batches(self, since: float = 0) -> Iterator[RemoteBatch]:
        """The batches of the account, newest first as providers list them.

        Args:
            since: Unix seconds; a page of older batches, in order, ends the listing.

        Raises:
            ProviderUnavailable: the listing is not complete, and nothing may be concluded from it.
        """
        ask = partial(self._page, self.dialect.batches)
        for found in pages(self.dialect, ask, self.dialect.read, "batches", complete=True):
            yield from found
            if found and all_before(found, since):
                return

    def cancel(self, batch_id: str) -> None:
        """Asks for a batch to be cancelled; one that has ended already stays as it is."""
        try:
            with self._translated(f"cancel {batch_id}"):
                self._client.post(f"{self._path(batch_id)}{self._cancels}", cast_to=object)
        except ProviderError as error:
            if isinstance(error, Unauthorized | NotFound):
                raise

    def download(self, file_id: str, path: Path) -> int:
        """Streams a file to `path`, whole or not at all; returns its bytes. An id may be a URL (SiliconFlow).

        Raises:
            DownloadCut: it kept arriving with fewer bytes than announced, or as a page.
        """
        for attempt in range(_DOWNLOAD_TRIES):
            try:
                return self._download_once(file_id, path)
            except DownloadCut:
                if attempt == _DOWNLOAD_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    def _download_once(self, file_id: str, path: Path) -> int:
        call = f"download {file_id}"
        if is_address(file_id):
            if not self.profile.file_addresses:
                raise ProviderUnavailable(
                    f"a result file is named by the address {file_id[:80]}, and {self.profile.name} has none: "
                    "it is not fetched (provider.profile: siliconflow fetches such files)"
                )
            with self._translated(call), opened_address(file_id, self.address) as reply:
                return receive(reply, file_id, path, lambda: None)
        unhurried = self._client.with_options(timeout=600)
        with self._translated(call), unhurried.files.with_streaming_response.content(file_id) as reply:
            return receive(reply, file_id, path, lambda: self._size(file_id))

    def file(self, file_id: str) -> RemoteFile | None:
        """Looks at a file; None where the provider does not tell."""
        try:
            return remote_file(self._client.files.retrieve(file_id))
        except (openai.OpenAIError, httpx2.HTTPError):
            return None

    def _size(self, file_id: str) -> int | None:
        return (found.bytes or None) if (found := self.file(file_id)) else None

    def files(self) -> Iterator[RemoteFile]:
        """All files of the account, of any purpose, page by page.

        Raises:
            ProviderError: the provider does not list files, or without end.
            ProviderUnavailable: a page cannot be read.
        """
        ask = partial(self._page, "/files")
        for found in pages(self.dialect, ask, self.dialect.read_file, "files", complete=False):
            yield from found

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
            raise self._refused(error, call) from None
        except (httpx2.HTTPError, ValueError) as error:  # the SDK does not catch that a reply is half of its JSON
            raise ProviderUnavailable(f"{call}: {cause_of(error)}") from None

    def _refused(self, error: openai.OpenAIError, call: str) -> OvernightError:
        """An SDK error as one of ours."""
        return self._without_key(translated(error, call, self.address))

    def _check(self, reply: httpx2.Response, call: str) -> None:
        """Refuses a reply to a call that went around the SDK, and is not yet read, unless it is a 200."""
        if reply.status_code == 200:
            return
        try:
            told = json.loads(reply.read())
            body = told.get("error", told) if isinstance(told, dict) else told
        except ValueError:
            body = reply.text
        code = body.get("type") if isinstance(body, dict) else None
        said = error_text(body, str(code) if code else None, reply.reason_phrase)
        raise self._without_key(refusal(reply.status_code, said, call, self.address))

    def _without_key(self, error: OvernightError) -> OvernightError:
        """An error without the key, which a server may echo."""
        return type(error)(error.message.replace(self._client.api_key, "***")) if self._has_key else error


def unredirected(*without: str) -> openai.DefaultHttpxClient:
    """A client that follows no redirect, with which a key could go elsewhere, and leaves headers of the SDK out."""

    def leave_out(request: httpx2.Request) -> None:
        for name in without:
            request.headers.pop(name, None)

    return openai.DefaultHttpxClient(event_hooks={"request": [leave_out]}, follow_redirects=False)


def arrived(file: RemoteFile | None, name: str, size: int) -> RemoteFile:
    """An upload's reply as a file.

    Raises:
        ProviderUnavailable: it names none, or one of another size.
    """
    if file is None:
        raise ProviderUnavailable(f"the upload of {name} was answered without a file id")
    if file.bytes not in (None, 0, size):
        raise ProviderUnavailable(f"{name} has {size:,} bytes, {file.bytes:,} arrived")
    return file


def posted(once: openai.OpenAI, path: str, content: bytes | Iterator[bytes], size: int) -> Any:
    """The reply to a call whose body is at hand."""
    headers = {"Content-Type": "application/json", "Content-Length": str(size)}
    return once.post(path, cast_to=object, content=content, options={"headers": headers})


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file, which is opened once somebody asks for them."""
    with path.open("rb") as lines:
        yield from lines


def check_time(until: float) -> None:
    """Refuses to send a call that comes too late.

    Raises:
        ReplyLost: what others did meanwhile is not known.
    """
    if time.time() > until:
        raise ReplyLost("the create call came too late to be sent")


def _key_from_environment(profile: Profile) -> str:
    if profile.api_key_env is None:
        return _NO_KEY
    if key := os.environ.get(profile.api_key_env):
        return key
    if profile.name == "custom":
        return _NO_KEY
    raise Unauthorized(f"no key for {profile.name}: set the environment variable {profile.api_key_env}")


# The SDK's literal types are narrower than what providers take: "batch-api".
def _as_purpose(value: str) -> Any:
    return value
