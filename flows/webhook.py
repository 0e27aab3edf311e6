"""The webhook receiver: OpenAI tells that a batch has ended, and the sweep runs at once. Polling stays the fallback.

An event is believed when its signature is right, and known by its `webhook-id`: a second delivery of it starts nothing,
since the sweep's run is keyed by it (Prefect's idempotency key) or, without a Prefect server, a sweep of a job that is
done does nothing.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL

from flows.collect import collect_batches
from overnight.errors import Terminal, Unauthorized
from overnight.ledger.run import all_shards
from overnight.providers.webhook import WebhookEvent, read_webhook
from overnight.store.home import home_path

SECRET_VARIABLE = "OPENAI_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable
DEPLOYMENT = "collect_batches/collect"
_MOST_BYTES = 64 * 1024
_MOST_REMEMBERED = 10_000
"""Deliveries: a provider repeats one for three days at most, and there is one per batch."""
logger = logging.getLogger("overnight.webhook")
Collect = Callable[[str, WebhookEvent], None]
"""Starts the sweep of a job, because of an event."""


def create_app(secret: str, home: str | None, collect: Collect) -> FastAPI:
    """The receiver as an application.

    Args:
        secret: what events are signed with (`whsec_…`).
        home: the folder of runs, whose ledger tells which job a batch belongs to.
        collect: starts a sweep.
    """
    app = FastAPI(title="overnight webhook", docs_url=None, redoc_url=None, openapi_url=None)
    seen: dict[str, None] = {}

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/")
    @app.post("/webhook")
    async def receive(request: Request) -> Response:
        body = await _body(request)
        if body is None:
            return JSONResponse({"error": "too large"}, 413)
        try:
            event = read_webhook(body, dict(request.headers), secret)
        except Unauthorized as error:
            return JSONResponse({"error": error.message}, 401)
        if event is None or event.id in seen:
            return JSONResponse({"status": "ignored"})
        job = await asyncio.to_thread(_job_of, event.batch_id, home)
        if job is None:
            return JSONResponse({"status": "ignored: no job of ours has this batch"})
        await asyncio.to_thread(collect, job, event)
        seen[event.id] = None
        while len(seen) > _MOST_REMEMBERED:
            del seen[next(iter(seen))]
        return JSONResponse({"status": "collecting", "job": job}, 202)

    return app


async def _body(request: Request) -> bytes | None:
    received = bytearray()
    async for chunk in request.stream():
        received += chunk
        if len(received) > _MOST_BYTES:
            return None
    return bytes(received)


def _job_of(batch_id: str, home: str | None) -> str | None:
    return next(
        (shard.job for shard in all_shards(home_path(home)) for b in shard.batches if b.batch_id == batch_id), None
    )


def collector(home: str | None) -> Collect:
    """Starts sweeps as runs of the deployment `collect_batches/collect`, or in this process where there is none."""

    def collect(job: str, event: WebhookEvent) -> None:
        logger.info("%s: %s has ended, collecting %s", event.type, event.batch_id, job)
        parameters = {"job": job, "home": home}
        if PREFECT_API_URL.value():
            try:
                run_deployment(DEPLOYMENT, parameters=parameters, timeout=0, idempotency_key=event.id)
            except ObjectNotFound:
                logger.info("no deployment %s: collecting in this process", DEPLOYMENT)
            else:
                return
        collect_batches(job, home)

    return collect


def serve(host: str, port: int, home: str | None) -> int:
    """Receives until it is told to stop.

    Raises:
        Terminal: the secret is not set.
    """
    if not (secret := os.environ.get(SECRET_VARIABLE)):
        raise Terminal(f"set {SECRET_VARIABLE} to the secret (whsec_…) that OpenAI shows for the webhook")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvicorn.run(create_app(secret, home, collector(home)), host=host, port=port, log_level="info", access_log=False)
    return 0
