"""The HTTP API: OpenAI's Files, Batches and Models, and the real-time paths of the upstream."""

import secrets
from collections.abc import Callable
from typing import Annotated, Any, Literal

import msgspec
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from overnight.endpoint import errors
from overnight.endpoint.batch_request import CreateBatch
from overnight.endpoint.errors import ApiError
from overnight.endpoint.lines import Answer
from overnight.endpoint.records import Batch, StoredFile, new_id, page, window_seconds
from overnight.endpoint.runner import Runner
from overnight.endpoint.settings import package_version
from overnight.endpoint.store import Store, UnknownCursorError
from overnight.endpoint.upload import receive_file
from overnight.endpoint.upstream import ENDPOINTS, Upstream, UpstreamError


class Service:
    """What the routes work with."""

    def __init__(
        self, store: Store, upstream: Upstream, runner: Runner, client_key: str | None, clock: Callable[[], float]
    ) -> None:
        self.store, self.upstream, self.runner, self.client_key, self.clock = store, upstream, runner, client_key, clock

    def file(self, file_id: str) -> StoredFile:
        """Return a file, or refuse with 404."""
        if file := self.store.file(file_id):
            return file
        raise ApiError(404, f"No such File object: {file_id}", "id")

    def batch(self, batch_id: str) -> Batch:
        """Return a batch, or refuse with 404."""
        if batch := self.store.batch(batch_id):
            return batch
        raise ApiError(404, f"No batch found with id '{batch_id}'.", "batch_id")


def create_app(service: Service, lifespan: Callable[[FastAPI], Any] | None = None) -> FastAPI:
    """Return the application over a service."""
    app = FastAPI(
        title="overnight endpoint",
        version=package_version(),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.service = service
    errors.install(app)
    app.include_router(health)
    app.include_router(api)
    for path in ENDPOINTS:
        app.add_api_route(path, _answer_now, methods=["POST"], dependencies=[Depends(_authorized)])
    return app


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


Server = Annotated[Service, Depends(_service)]


async def _authorized(request: Request, server: Server) -> None:
    if server.client_key is None:
        return
    sent = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
    if not sent:
        raise ApiError(401, "You didn't provide an API key: send it as 'Authorization: Bearer KEY'.")
    if not secrets.compare_digest(sent.encode(), server.client_key.encode()):
        raise ApiError(401, "Incorrect API key provided.", code="invalid_api_key")


health = APIRouter()
api = APIRouter(prefix="/v1", dependencies=[Depends(_authorized)])


@health.get("/healthz")
async def healthz(server: Server) -> dict[str, Any]:
    """Say whether the upstream answers right away, and what is served."""
    upstream = server.upstream
    return {
        "status": "ok" if upstream.ready else "starting",
        "ready": upstream.ready,
        "upstream": upstream.name,
        "endpoints": list(upstream.endpoints),
        "models": sorted(upstream.model_ids) if upstream.model_ids is not None else None,
        "version": package_version(),
    }


@api.post("/files")
async def create_file(request: Request, server: Server) -> dict[str, Any]:
    """Upload a file."""
    file = await receive_file(request, server.store, int(server.clock()))
    return file.to_api()


@api.get("/files")
async def list_files(
    server: Server,
    purpose: str | None = None,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
) -> dict[str, Any]:
    """List files, newest first unless asked otherwise."""
    try:
        return page(server.store.list_files(purpose, after, limit + 1, order == "desc"), limit)
    except UnknownCursorError as error:
        raise ApiError(400, f"No such File object: {after}", "after") from error


@api.get("/files/{file_id}")
async def retrieve_file(file_id: str, server: Server) -> dict[str, Any]:
    """Describe a file."""
    return server.file(file_id).to_api()


@api.get("/files/{file_id}/content")
async def file_content(file_id: str, server: Server) -> FileResponse:
    """Stream a file's bytes, with their length in the header."""
    return FileResponse(server.store.path(server.file(file_id).id), media_type="application/octet-stream")


@api.delete("/files/{file_id}")
async def delete_file(file_id: str, server: Server) -> dict[str, Any]:
    """Delete a file that no open batch reads."""
    file = server.file(file_id)
    if batch_id := server.store.open_batch_of(file.id):
        raise ApiError(400, f"The file is the input of {batch_id}: cancel it or wait for its end.", "id", "file_in_use")
    server.store.delete_file(file.id)
    return {"id": file.id, "object": "file", "deleted": True}


@api.post("/batches")
async def create_batch(body: CreateBatch, server: Server) -> dict[str, Any]:
    """Create a batch; it is validated and run in the background."""
    _check_served(body.endpoint, server.upstream)
    file = server.store.file(body.input_file_id)
    if file is None or file.purpose != "batch":
        why = "does not exist" if file is None else f"has the purpose '{file.purpose}', not 'batch'"
        raise ApiError(400, f"The input file '{body.input_file_id}' {why}.", "input_file_id", "invalid_value")
    now = int(server.clock())
    batch = Batch(
        id=new_id("batch_"),
        status="validating",
        endpoint=body.endpoint,
        input_file_id=file.id,
        completion_window=body.completion_window,
        created_at=now,
        expires_at=now + window_seconds(body.completion_window),
        metadata=msgspec.json.encode(body.metadata).decode() if body.metadata is not None else None,
    )
    server.store.add_batch(batch)
    server.runner.submit(batch.id)
    return batch.to_api()


def _check_served(endpoint: str, upstream: Upstream) -> None:
    if endpoint not in upstream.endpoints:
        served = ", ".join(upstream.endpoints)
        message = f"'{endpoint}' is not served by this endpoint ({upstream.name}). Served: {served}."
        raise ApiError(400, message, "endpoint", "invalid_value")


@api.get("/batches")
async def list_batches(
    server: Server, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """List batches, newest first."""
    try:
        return page(server.store.list_batches(after, limit + 1), limit)
    except UnknownCursorError as error:
        raise ApiError(400, f"No batch found with id '{after}'.", "after") from error


@api.get("/batches/{batch_id}")
async def retrieve_batch(batch_id: str, server: Server) -> dict[str, Any]:
    """Describe a batch."""
    return server.batch(batch_id).to_api()


@api.post("/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, server: Server) -> dict[str, Any]:
    """Cancel a batch; its finished lines are kept."""
    batch = server.batch(batch_id)
    if not server.runner.cancel(batch.id):
        raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'.", "batch_id", "invalid_status")
    return server.batch(batch_id).to_api()


@api.get("/models")
async def list_models(server: Server) -> Response:
    """List the upstream's models, in its own words."""
    return _passed_on(await _models(server))


@api.get("/models/{model_id:path}")
async def retrieve_model(model_id: str, server: Server) -> Response:
    """Describe one of the upstream's models."""
    answer = await _models(server)
    if answer.status_code >= 400:
        return _passed_on(answer)
    listed = msgspec.json.decode(answer.body)
    models = listed.get("data", []) if isinstance(listed, dict) else []
    for model in models:
        if isinstance(model, dict) and model.get("id") == model_id:
            return JSONResponse(model)
    raise ApiError(404, f"The model '{model_id}' does not exist.", "model", "model_not_found")


async def _models(server: Service) -> Answer:
    try:
        return await server.upstream.models()
    except UpstreamError as error:
        raise ApiError(502, str(error)) from error


async def _answer_now(request: Request, server: Server) -> Response:
    """Pass a real-time request on to the upstream, once."""
    _check_served(request.url.path, server.upstream)
    body = await request.body()
    try:
        head = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ApiError(400, "We could not parse the JSON body of your request.") from error
    if isinstance(head, dict) and head.get("stream"):
        raise ApiError(400, "Streaming is not served here: leave 'stream' out.", "stream")
    try:
        return _passed_on((await server.upstream.send(request.url.path, body)).answer)
    except UpstreamError as error:
        raise ApiError(502, str(error)) from error


def _passed_on(answer: Answer) -> Response:
    return Response(answer.body, answer.status_code, {"x-request-id": answer.request_id}, "application/json")
