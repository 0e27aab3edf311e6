"""The upstream's real-time paths, passed on as they are."""

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from overnight.endpoint.api import documents
from overnight.endpoint.api.service import Service
from overnight.endpoint.errors import ApiError
from overnight.endpoint.storage.foreign_json import TooDeepError, read_json
from overnight.endpoint.storage.lines import Answer
from overnight.endpoint.upstream.upstream import ENDPOINTS, UpstreamError

router: Final = APIRouter()


def service_of(request: Request) -> Service:
    """Return the service that the application was made over."""
    service: Service = request.app.state.service
    return service


Server = Annotated[Service, Depends(service_of)]


@router.get("/v1/models", response_model=None, responses=documents.answers(None, 502))
async def list_models(server: Server) -> Response:
    """List the upstream's models, in its own words."""
    return _passed_on(await _models(server))


@router.get("/v1/models/{model_id:path}", response_model=None, responses=documents.answers(None, 404, 502))
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


async def answer_now(request: Request, server: Server) -> Response:
    """Pass a real-time request on to the upstream, once."""
    server.check_served(request.url.path)
    body = await request.body()
    try:
        head = read_json(body)
    except TooDeepError as error:
        raise ApiError(400, f"The JSON body of your request is {error}: flatten it.") from error
    except ValueError as error:
        raise ApiError(400, "We could not parse the JSON body of your request.") from error
    if not isinstance(head, dict):
        raise ApiError(400, "The JSON body of your request is not an object.")
    if head.get("stream"):
        raise ApiError(400, "Streaming is not served here: leave 'stream' out.", "stream")
    try:
        return _passed_on((await server.upstream.send(request.url.path, body)).answer)
    except UpstreamError as error:
        raise ApiError(502, str(error)) from error


for _path in ENDPOINTS:
    router.add_api_route(
        _path,
        answer_now,
        methods=["POST"],
        response_model=None,
        openapi_extra=documents.JSON_BODY,
        responses=documents.answers(None, 415, 502),
    )


def _passed_on(answer: Answer) -> Response:
    return Response(answer.body, answer.status_code, {"x-request-id": answer.request_id}, "application/json")
