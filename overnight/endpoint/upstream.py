"""The real-time API that answers the lines: what the runner needs of it, one over HTTP, and the retries."""

import asyncio
import random
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final, NamedTuple, Protocol
from urllib.parse import urlsplit

import httpx2
import msgspec

from overnight.endpoint.lines import Answer, Failure
from overnight.endpoint.records import new_id

ENDPOINTS: Final = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/responses",
    "/v1/moderations",
)

MAX_ATTEMPTS: Final = 5
_FIRST_DELAY_SECONDS: Final = 0.5
_LONGEST_DELAY_SECONDS: Final = 30.0
_VERSION_SEGMENT: Final = re.compile(r"v\d+([a-z]+\d*)?")


class UpstreamError(Exception):
    """An attempt brought no usable answer; the message is safe to show to the client."""


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
    def concurrency(self) -> int:
        """How many requests at once suit it."""

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
    ready = True

    def __init__(self, base_url: str, key: str | None, concurrency: int = 8, timeout_seconds: float = 600) -> None:
        self.name = base_url
        self.base_url = base_url
        self.concurrency = concurrency
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=concurrency)
        timeout = httpx2.Timeout(timeout_seconds, connect=min(10, timeout_seconds))
        self._client = httpx2.AsyncClient(headers=headers, limits=limits, timeout=timeout)
        self._timeout_seconds = timeout_seconds

    async def start(self) -> None:
        """Do nothing: whether it answers shows with the first request."""

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

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
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._client.request(method, url, content=body, headers=headers)
        except (TimeoutError, httpx2.TimeoutException) as error:
            raise UpstreamTimeoutError(f"The upstream did not answer within {self._timeout_seconds:g} s.") from error
        except httpx2.HTTPError as error:
            raise UpstreamError(f"The upstream could not be reached: {type(error).__name__}: {error}") from error
        return reply(response.status_code, response.content, dict(response.headers))


def reply(status: int, content: bytes, headers: dict[str, str]) -> Reply:
    """Turn an HTTP response into a reply, whatever its body is.

    Raises:
        UpstreamError: it claims success, but its body is not JSON (a proxy's page, a cut transfer).
    """
    if not _is_json(content):
        if status < 400:
            raise UpstreamError(f"The upstream answered {status} with a body that is not JSON.")
        content = _error_body(status, content)
    answer = Answer(status, content, headers.get("x-request-id") or new_id("req_"))
    return Reply(answer, retry_after_seconds(headers.get("retry-after"), datetime.now(UTC)))


def _is_json(content: bytes) -> bool:
    try:
        msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


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
    except (ValueError, TypeError):
        return None


def is_retryable(status: int) -> bool:
    """Whether the same request may fare better later."""
    return status in {408, 409, 429} or status >= 500


def retry_delay(attempt: int, retry_after: float | None, jitter: float) -> float:
    """Return the seconds to wait after failed attempt number `attempt` (from 1); `jitter` is from 0 to 1.

    An upstream that says how long is believed; else the delay doubles, spread over its upper half.
    """
    if retry_after is not None:
        return retry_after + jitter * _FIRST_DELAY_SECONDS
    delay = min(_LONGEST_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2.0 ** (attempt - 1))
    return delay * (0.5 + jitter / 2)


async def answer_with_retries(upstream: Upstream, path: str, body: bytes) -> Answer | Failure:
    """Send a request until it has an answer worth keeping, or MAX_ATTEMPTS attempts have failed."""
    outcome: Answer | Failure = Failure("upstream_error", "No attempt was made.")
    for attempt in range(1, MAX_ATTEMPTS + 1):
        retry_after = None
        try:
            answer, retry_after = await upstream.send(path, body)
        except UpstreamTimeoutError as error:
            outcome = Failure("request_timeout", str(error))
        except UpstreamError as error:
            outcome = Failure("upstream_error", str(error))
        else:
            if not is_retryable(answer.status_code):
                return answer
            outcome = answer
        if attempt < MAX_ATTEMPTS:
            await asyncio.sleep(retry_delay(attempt, retry_after, random.random()))  # noqa: S311 - spreads retries only
    return outcome
