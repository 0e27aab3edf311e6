"""The real-time API that answers the lines: what the runner needs of it, and one over HTTP."""

import re
import ssl
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import aiohttp
import msgspec
import truststore

from overnight.endpoint.settings import is_loopback
from overnight.endpoint.storage.foreign_json import TooDeepError, mended, read_json, whole_text
from overnight.endpoint.storage.lines import Answer
from overnight.endpoint.storage.records import new_id

ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/moderations",
)

MAX_ANSWER_BYTES: Final = 128 * 1024 * 1024
"""Room for 2,048 embeddings of 3,072 numbers in one answer."""
_CONNECT_SECONDS: Final = 10.0
_IDLE_SECONDS: Final = 4.0
"""How long an unused connection is kept: less than the 5 s after which vLLM and llama.cpp close theirs."""
_CHARSET: Final = re.compile(r";\s*charset\s*=\s*\"?([\w.:-]{1,40})", re.IGNORECASE)
_VERSION_SEGMENT: Final = re.compile(r"v\d+([a-z]+\d*)?")


class UpstreamError(Exception):
    """An attempt brought no usable answer; the message is safe to show to the client, and UTF-8 can carry it."""

    def __init__(self, message: str) -> None:
        super().__init__(whole_text(message))


class UnusableAnswerError(UpstreamError):
    """An answer came whole and cannot be kept; another would be paid for again and be no better."""


class UpstreamTimeoutError(UpstreamError):
    """An attempt took too long."""


class Reply(NamedTuple):
    """An answer, and the seconds to wait that its headers ask for before another attempt."""

    answer: Answer
    retry_after: float | None = None


class Upstream(Protocol):
    """A real-time API in OpenAI's shape."""

    @property
    def name(self) -> str:
        """What to call it in messages; never holds a key."""

    @property
    def endpoints(self) -> tuple[str, ...]:
        """The paths it answers, such as `/v1/chat/completions`."""

    @property
    def model_ids(self) -> frozenset[str] | None:
        """The models it serves; None where only a request would tell."""

    @property
    def concurrency(self) -> int | None:
        """How many requests at once suit it; None where that shows only in use."""

    @property
    def ready(self) -> bool:
        """Whether it answers right away; before that, `send` waits."""

    async def start(self) -> None:
        """Make it ready.

        Raises:
            UpstreamError: it will never be ready.
        """

    async def close(self) -> None:
        """Let go of connections."""

    async def send(self, path: str, body: bytes) -> Reply:
        """Post a JSON body to a path, once.

        Raises:
            UpstreamError: no usable answer came.
        """

    async def models(self) -> Answer:
        """Return OpenAI's list of models.

        Raises:
            UpstreamError: no usable answer came.
        """


def join(base_url: str, path: str) -> str:
    """Join a base URL and an API path such as `/v1/models`.

    A base URL that names a version already (`…/v1`, `…/api/paas/v4`, `…/v1beta/openai`) is complete as it is.
    """
    base = base_url.rstrip("/")
    versioned = any(_VERSION_SEGMENT.fullmatch(segment) for segment in urlsplit(base).path.split("/"))
    return base + (path.removeprefix("/v1") if versioned else path)


class HttpUpstream:
    """An OpenAI-compatible API over HTTP."""

    endpoints: tuple[str, ...] = ENDPOINTS
    model_ids: frozenset[str] | None = None
    concurrency: int | None = None
    ready = True

    def __init__(self, base_url: str, key: str | None, timeout_seconds: float = 600) -> None:
        self.name = base_url
        self.base_url = base_url
        self._timeout_seconds = timeout_seconds
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0, keepalive_timeout=_IDLE_SECONDS, ssl=truststore.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            ),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=aiohttp.ClientTimeout(timeout_seconds, sock_connect=min(_CONNECT_SECONDS, timeout_seconds)),
            cookie_jar=aiohttp.DummyCookieJar(),
            # HTTPS_PROXY and its like: no proxy reaches what listens on this machine alone.
            trust_env=not is_loopback(urlsplit(base_url).hostname or ""),
        )

    async def start(self) -> None:
        """Do nothing: whether it answers shows with the first request."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def send(self, path: str, body: bytes) -> Reply:
        """Post a JSON body to a path, once."""
        return await self._request("POST", path, body)

    async def models(self) -> Answer:
        """Return the upstream's own list of models."""
        return (await self._request("GET", "/v1/models")).answer

    async def _request(self, method: str, path: str, body: bytes | None = None) -> Reply:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        url = join(self.base_url, path)
        try:
            async with self._client.request(method, url, data=body, headers=headers, allow_redirects=False) as response:
                return reply(response.status, await _content(response), response.headers)
        except TimeoutError as error:
            raise UpstreamTimeoutError(f"The upstream did not answer within {self._timeout_seconds:g} s.") from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(f"The upstream could not be reached: {type(error).__name__}: {error}") from error


async def _content(response: aiohttp.ClientResponse) -> bytes:
    parts, size = [], 0
    async for part in response.content.iter_any():
        size += len(part)
        if size > MAX_ANSWER_BYTES:
            raise UnusableAnswerError(f"The upstream's answer is larger than the limit of {MAX_ANSWER_BYTES} bytes.")
        parts.append(part)
    return b"".join(parts)


def reply(status: int, content: bytes, headers: Mapping[str, str]) -> Reply:
    """Turn an HTTP response into a reply, whatever its body is.

    Strict JSON is kept as it came, what only a lenient reader takes for JSON is mended: it is paid for.

    Raises:
        UnusableAnswerError: it claims success, but its body nests too deep.
        UpstreamError: it claims success, but its body is not JSON (a proxy's page, a cut transfer).
    """
    try:
        content = _strict_json(content, headers.get("content-type", ""))
    except ValueError as error:
        if status >= 400:
            content = _error_body(status, content)
        elif isinstance(error, TooDeepError):
            raise UnusableAnswerError(f"The upstream's answer is {error}.") from None
        else:
            raise UpstreamError(f"The upstream answered {status} with a body that is not JSON.") from None
    answer = Answer(status, content, _request_id(headers))
    return Reply(answer, retry_after_seconds(headers.get("retry-after"), datetime.now(UTC)))


def _strict_json(content: bytes, content_type: str) -> bytes:
    try:
        read_json(content)
    except TooDeepError:
        raise
    except ValueError:
        charset = _CHARSET.search(content_type)
        return mended(content, charset[1] if charset else None)
    return content


def _request_id(headers: Mapping[str, str]) -> str:
    """Return the upstream's id where a result file and a header can both carry it."""
    given = headers.get("x-request-id", "")
    return given if given and given.isascii() and given.isprintable() else new_id("req_")


def _error_body(status: int, content: bytes) -> bytes:
    text = content[:500].decode(errors="replace").strip() or f"HTTP {status}"
    error: dict[str, Any] = {"message": text, "type": "upstream_error", "param": None, "code": None}
    return msgspec.json.encode({"error": error})


def retry_after_seconds(header: str | None, now: datetime) -> float | None:
    """Read a Retry-After header: seconds, or a date."""
    if not header:
        return None
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - now).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
