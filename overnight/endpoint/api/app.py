"""The HTTP API: OpenAI's Files and Batches, the upstream's real-time paths, health and metrics."""

from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, FastAPI, Header, Query, Request, Response
from fastapi.responses import FileResponse

from overnight.endpoint import errors
from overnight.endpoint.api import documents, realtime
from overnight.endpoint.api.batch_request import CreateBatch
from overnight.endpoint.api.documents import BatchObject, BatchPage, DeletedFile, FileObject, FilePage, answers
from overnight.endpoint.api.guard import Guard
from overnight.endpoint.api.realtime import Server
from overnight.endpoint.api.service import Service
from overnight.endpoint.api.upload import receive_file
from overnight.endpoint.errors import ApiError
from overnight.endpoint.settings import package_version
from overnight.endpoint.storage.records import page
from overnight.endpoint.storage.store import UnknownCursorError

PROMETHEUS: Final = "text/plain; version=0.0.4; charset=utf-8"


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
    documents.install(app)
    app.add_middleware(Guard, client_key=service.client_key, hosts=service.hosts)
    for router in (about, api, realtime.router):
        app.include_router(router)
    return app


about = APIRouter()
api = APIRouter(prefix="/v1")


@about.get("/healthz")
async def healthz(server: Server) -> dict[str, Any]:
    """Say whether the upstream answers right away, and what is served."""
    return server.health()


@about.get("/metrics", response_class=Response)
async def metrics(server: Server) -> Response:
    """Tell Prometheus."""
    return Response(server.metrics.text(), media_type=PROMETHEUS)


@api.post("/files", response_model=None, responses=answers(FileObject, 507), openapi_extra=documents.UPLOAD)
async def create_file(request: Request, server: Server) -> dict[str, Any]:
    """Upload a file."""
    file = await receive_file(request, server.store, server.disk, int(server.clock()), server.keep_seconds)
    return file.to_api()


@api.get("/files", response_model=None, responses=answers(FilePage))
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


@api.get("/files/{file_id}", response_model=None, responses=answers(FileObject, 404))
async def retrieve_file(file_id: str, server: Server) -> dict[str, Any]:
    """Describe a file."""
    return server.file(file_id).to_api()


@api.get("/files/{file_id}/content", response_class=FileResponse, responses=answers(None, 404))
async def file_content(file_id: str, server: Server) -> FileResponse:
    """Stream a file's bytes, with their length in the header."""
    return FileResponse(server.store.path(server.file(file_id).id), media_type="application/octet-stream")


@api.delete("/files/{file_id}", response_model=None, responses=answers(DeletedFile, 404))
async def delete_file(file_id: str, server: Server) -> dict[str, Any]:
    """Delete a file that no open batch reads."""
    file = server.file(file_id)
    if batch_id := server.store.open_batch_of(file.id):
        raise ApiError(400, f"The file is the input of {batch_id}: cancel it or wait for its end.", "id", "file_in_use")
    server.store.delete_file(file.id)
    return {"id": file.id, "object": "file", "deleted": True}


@api.post("/batches", response_model=None, responses=answers(BatchObject, 409, 415, 429, 507))
async def create_batch(
    body: CreateBatch,
    server: Server,
    idempotency_key: Annotated[str | None, Header(min_length=1, max_length=255)] = None,
) -> dict[str, Any]:
    """Create a batch; it is validated and run in the background."""
    return server.create_batch(body, idempotency_key).to_api()


@api.get("/batches", response_model=None, responses=answers(BatchPage))
async def list_batches(
    server: Server, after: str | None = None, limit: Annotated[int, Query(ge=1, le=100)] = 20
) -> dict[str, Any]:
    """List batches, newest first."""
    try:
        return page(server.store.list_batches(after, limit + 1), limit)
    except UnknownCursorError as error:
        raise ApiError(400, f"No batch found with id '{after}'.", "after") from error


@api.get("/batches/{batch_id}", response_model=None, responses=answers(BatchObject, 404))
async def retrieve_batch(batch_id: str, server: Server) -> dict[str, Any]:
    """Describe a batch."""
    return server.batch(batch_id).to_api()


@api.post("/batches/{batch_id}/cancel", response_model=None, responses=answers(BatchObject, 404, 409))
async def cancel_batch(batch_id: str, server: Server) -> dict[str, Any]:
    """Cancel a batch; its finished lines are kept. One that is cancelled already stays so; any other end is a 409."""
    batch = server.batch(batch_id)
    if not server.runner.cancel(batch.id):
        raise ApiError(409, f"Cannot cancel a batch with status '{batch.status}'.", "batch_id", "invalid_status")
    return server.batch(batch_id).to_api()
