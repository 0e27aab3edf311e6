"""The page and what it asks for, over HTTP on this machine: read only, nothing is fetched from elsewhere."""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from overnight.errors import OvernightError
from overnight.ledger.run import Run, recorded_run
from overnight.view.answers import about, compared, jobs
from overnight.view.charts import charts
from overnight.view.details import details
from overnight.view.rows import Ask, page

STATIC = Path(__file__).with_name("static")
_LOOPBACK: Final = frozenset({"127.0.0.1", "localhost", "::1"})
_HEADERS: Final = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}
_COOKIE: Final = "overnight_view"


class Doorkeeper:
    """Lets in who may look: any program of this machine under its own names; beyond it, who has the token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app, self._token = app, token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope)
        answer = self._refusal(request)
        if answer is None and self._token and request.query_params.get("token"):
            answer = RedirectResponse(request.url.path, 303)
            answer.set_cookie(_COOKIE, self._token, httponly=True, samesite="strict")
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, request: Request) -> Response | None:
        if request.method not in ("GET", "HEAD"):
            return PlainTextResponse("only GET", 405)
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname
        if self._token is None:  # a name that was pointed at this machine must not read from it
            return None if host in _LOOPBACK else PlainTextResponse("not a name of this machine", 421)
        given = request.query_params.get("token") or request.cookies.get(_COOKIE) or ""
        good = hmac.compare_digest(given.encode(), self._token.encode())
        return None if good else PlainTextResponse("the address that `overnight view` printed has the token", 403)


def create_app(home: Path, token: str | None = None) -> Starlette:
    """The application over a home.

    Args:
        home: the folder of runs.
        token: what strangers have to know; None where it is served on loopback alone.
    """

    def answer(ask: Callable[[Request], Any]) -> Callable[[Request], Any]:
        async def endpoint(request: Request) -> Response:
            try:
                found = await run_in_threadpool(ask, request)
            except (OvernightError, msgspec.ValidationError, ValueError) as error:
                return _json({"error": str(error)}, 400)
            return _json(found)

        return endpoint

    def run_of(request: Request) -> Run:
        return recorded_run(request.path_params["job"], home)

    def rows(request: Request) -> Any:
        ask = msgspec.json.decode(request.query_params.get("ask", "{}"), type=Ask)
        return page(run_of(request).folder.joined, ask)._asdict()

    async def front(_: Request) -> Response:
        return Response((STATIC / "index.html").read_bytes(), headers=_HEADERS, media_type="text/html")

    return Starlette(
        routes=[
            Route("/", front),
            Route("/api/jobs", answer(lambda _: jobs(home))),
            Route("/api/jobs/{job}", answer(lambda r: about(run_of(r)))),
            Route("/api/jobs/{job}/rows", answer(rows)),
            Route("/api/jobs/{job}/rows/{row:int}", answer(lambda r: details(run_of(r), [r.path_params["row"]])[0])),
            Route("/api/jobs/{job}/charts", answer(lambda r: charts(run_of(r)))),
            Route(
                "/api/jobs/{job}/compare/{other}",
                answer(lambda r: compared(run_of(r), recorded_run(r.path_params["other"], home))),
            ),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[Middleware(Doorkeeper, token=token)],
    )


def _json(value: Any, status: int = 200) -> Response:
    return Response(as_json(value), status, _HEADERS, "application/json")


def as_json(value: Any) -> bytes:
    """What the page is given, with whatever JSON does not know as text."""
    return msgspec.json.encode(value, enc_hook=str)


def serve(home: Path, host: str, port: int, job: str | None, told: Callable[[str], None]) -> None:
    """Serves the page until Ctrl-C.

    Args:
        home: the folder of runs.
        host: the address to listen on; beyond loopback a token is asked for.
        port: 0 takes a free one.
        job: the one that the printed address opens.
        told: is given the address once it answers.
    """
    token = None if host in _LOOPBACK else secrets.token_urlsafe(24)
    config = uvicorn.Config(create_app(home, token), host=host, port=port, log_level="warning", access_log=False)
    listener = config.bind_socket()
    listener.listen(
        config.backlog
    )  # the address is told now: who comes before the server runs waits, and is not refused
    shown = "localhost" if host in ("0.0.0.0", "::") else host  # noqa: S104 - asked for by the person, and behind a token
    name = f"[{shown}]" if ":" in shown else shown
    query, fragment = f"?token={token}" if token else "", f"#{job}" if job else ""
    told(f"http://{name}:{listener.getsockname()[1]}/{query}{fragment}")
    uvicorn.Server(config).run(sockets=[listener])
