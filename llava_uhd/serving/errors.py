"""Error responses: JSON as OpenAI's clients expect it, without paths or tracebacks."""

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from .generation import Cancelled, DeadlineExceeded, EngineBusy, EngineClosed

log = logging.getLogger(__name__)

MAX_MESSAGE = 1000  # characters of an error; what a client sent is not echoed at length
CLIENT_GONE = 499  # as logged by nginx; the client has disconnected
TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


def shorten(text: str, length: int = 100) -> str:
    """Return a text, the middle of one that is too long left out."""
    return text if len(text) <= length else f"{text[: length // 2]}...{text[-length // 4 :]}"


class ApiError(Exception):
    """A refusal.

    Attributes:
        status: HTTP status.
        message: error message for the client.
        code: one word for programs, or None.
        param: the parameter that is wrong, or None.
        headers: response headers.
    """

    def __init__(
        self,
        status: int,
        message: str,
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        message = shorten(message, MAX_MESSAGE)
        super().__init__(message)
        self.status, self.message, self.code, self.headers = status, message, code, headers
        self.param = None if param is None else shorten(param)

    def body(self) -> dict:
        kind = TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)


def as_api_error(error: Exception) -> ApiError:
    """Return the error response of an exception; an unexpected one reveals nothing but its occurrence."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, EngineBusy):
        return ApiError(429, str(error), "queue_full", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, DeadlineExceeded):
        return ApiError(503, str(error), "deadline_exceeded", headers={"Retry-After": "1"})
    if isinstance(error, EngineClosed):
        return ApiError(503, "the server is shutting down", "shutting_down", headers={"Retry-After": "1"})
    if isinstance(error, Cancelled):
        return ApiError(CLIENT_GONE, str(error), "client_gone")
    if isinstance(error, ValueError):
        return ApiError(400, str(error), "invalid_value")
    log.error("unforeseen error", exc_info=error)
    return ApiError(500, "the server failed to answer this request; its log says why", "internal_error")


def install_handlers(app: FastAPI) -> None:
    """Every error of the app as JSON."""

    def http_error(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return ApiError(error.status_code, str(error.detail), headers=dict(error.headers or {})).response()

    def any_error(_: Request, error: Exception) -> JSONResponse:
        return as_api_error(error).response()

    app.add_exception_handler(HTTPException, http_error)
    # What is handled as `Exception` is raised again after its response, and logged as a failure of the server.
    for expected in (ApiError, Cancelled, DeadlineExceeded, EngineBusy, EngineClosed, ValueError):
        app.add_exception_handler(expected, any_error)
    app.add_exception_handler(Exception, any_error)
