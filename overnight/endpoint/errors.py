"""Errors of the HTTP API, in OpenAI's envelope `{"error": {"message", "type", "param", "code"}}`."""

import logging
from typing import Any, Final

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

log: Final = logging.getLogger(__name__)


class ApiError(Exception):
    """A refusal that the client sees."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code

    def response(self) -> JSONResponse:
        """Return the error as an HTTP response; OpenAI's SDK asks again after 409 and 5xx unless it is told not to."""
        headers = {"x-should-retry": "false"} if self.status in {409, 507} else None
        return JSONResponse(envelope(self.status, self.message, self.param, self.code), self.status, headers)


def envelope(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """Return OpenAI's error object for an HTTP status."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def from_validation(error: RequestValidationError) -> ApiError:
    """Name the first parameter that is missing, unknown or wrong, as a 400."""
    first = error.errors()[0]
    # The first part says where the parameter stands: body, query, path. JSON errors have a byte offset there.
    param = ".".join(str(part) for part in first["loc"][1:]) or None
    if first["type"] == "json_invalid":
        return ApiError(400, "We could not parse the JSON body of your request.")
    if first["type"] == "missing":
        return ApiError(400, f"Missing required parameter: '{param}'.", param, "missing_required_parameter")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    subject = f"'{param}'" if param else "request body"
    return ApiError(400, f"Invalid {subject}: {first['msg']}.", param, "invalid_value")


def install(app: FastAPI) -> None:
    """Give every error of an application the envelope."""

    @app.exception_handler(ApiError)
    async def refused(_: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        message = f"Invalid URL ({request.method} {request.url.path})" if error.status_code == 404 else error.detail
        code = "request_too_large" if error.status_code == 413 else None
        return JSONResponse(envelope(error.status_code, message, code=code), error.status_code, error.headers)

    @app.exception_handler(Exception)
    async def fault(request: Request, _: Exception) -> JSONResponse:
        # Starlette re-raises after this answer, and the server logs the traceback.
        return JSONResponse(envelope(500, f"The server failed on {request.method} {request.url.path}."), 500)
