"""What holds for every request before a route sees it: who may send it, bounds on bodies, bounds on time."""

import asyncio
import contextlib
import secrets
from typing import Any, Final

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from overnight.endpoint.api.origin import check_json, check_page
from overnight.endpoint.errors import ApiError
from overnight.endpoint.storage.lines import MAX_LINE_BYTES
from overnight.endpoint.upstream.upstream import ENDPOINTS

MAX_JSON_BYTES: Final = 1024 * 1024
SILENT_SECONDS: Final = 60.0
"""How long a client may neither send nor take a byte in the middle of a request."""
HEAD_SECONDS: Final = 20.0
_OPEN_PATHS: Final = ("/healthz", "/openapi.json")
_UPLOADS: Final = "/v1/files"


class _SlowClientError(Exception):
    """The client does not take its answer."""


def _named(send: Send) -> Send:
    """Gives every reply an id to ask about, as OpenAI's have one, where it has none from the upstream."""

    async def named(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).setdefault("x-request-id", f"req_{secrets.token_hex(16)}")
        await send(message)

    return named


class Guard:
    """Middleware that refuses strangers and bodies that are too large, and lets go of clients that stand still."""

    def __init__(
        self,
        app: ASGIApp,
        client_key: str | None,
        hosts: frozenset[str] | None = None,
        silent_seconds: float = SILENT_SECONDS,
    ) -> None:
        """Serve requests to `hosts` and from their pages, None for any."""
        self._app, self._key = app, client_key.encode() if client_key is not None else None
        self._hosts, self._silent_seconds = hosts, silent_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with its refusal."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers, send = Headers(scope=scope), _named(send)
        try:
            if self._hosts is not None:
                check_page(headers, self._hosts)
            self._check_key(scope["path"], headers.get("authorization", ""))
            check_json(scope["method"], scope["path"], headers)
            limit = body_limit(scope["path"])
            check_length(headers.get("content-length", ""), limit)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        with contextlib.suppress(_SlowClientError):  # uvicorn closes the connection of an answer that did not end
            await self._app(scope, self._bounded(receive, limit), self._patient(send))

    def _check_key(self, path: str, header: str) -> None:
        if self._key is None or path in _OPEN_PATHS:
            return
        sent = header.encode("latin-1").removeprefix(b"Bearer ").strip()
        if not sent:
            raise ApiError(401, "You didn't provide an API key: send it as 'Authorization: Bearer KEY'.")
        if not secrets.compare_digest(sent, self._key):
            raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")

    def _bounded(self, receive: Receive, limit: int | None) -> Receive:
        received, complete = 0, False

        async def bounded() -> Message:
            nonlocal received, complete
            if complete:  # what comes now is the client's leaving, for which there is no hurry
                return await receive()
            try:
                async with asyncio.timeout(self._silent_seconds):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, f"No byte of the request body came for {self._silent_seconds:g} s.") from None
            received += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if limit is not None and received > limit:
                raise HTTPException(413, _too_large(limit))
            return message

        return bounded

    def _patient(self, send: Send) -> Send:
        async def patient(message: Message) -> None:
            try:
                async with asyncio.timeout(self._silent_seconds):
                    await send(message)
            except TimeoutError:
                raise _SlowClientError from None

        return patient


def body_limit(path: str) -> int | None:
    """Return how many bytes a request to a path may carry; None for uploads, which have a bound of their own."""
    if path == _UPLOADS:
        return None
    return MAX_LINE_BYTES if path in ENDPOINTS else MAX_JSON_BYTES


def check_length(header: str, limit: int | None) -> None:
    """Refuse a body by the length that it announces.

    Raises:
        ApiError: 413.
    """
    if limit is not None and header.isdecimal() and int(header[:20]) > limit:
        raise ApiError(413, _too_large(limit), code="request_too_large")


def _too_large(limit: int) -> str:
    return f"The request body is larger than the limit of {limit} bytes."


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP/1.1, which also closes a connection on which no request's head is completed for some time."""

    head_seconds = HEAD_SECONDS

    def connection_made(self, transport: Any) -> None:
        """Start to watch the connection."""
        super().connection_made(transport)
        self._seen: object = None
        self._watch = self.loop.call_later(self.head_seconds, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching."""
        self._watch.cancel()
        super().connection_lost(exc)

    def _look(self) -> None:
        waiting = self.cycle is None or self.cycle.response_complete
        # A client that asks often is seen between two requests every time, but never twice after the same one.
        if waiting and self.cycle is self._seen:
            self.transport.close()
            return
        self._seen = self.cycle
        self._watch = self.loop.call_later(self.head_seconds, self._look)
