"""Errors to answers: the one mapping from the error tree to ``application/problem+json`` (RFC 9457)."""

from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from app.api.exchange import Exchange
from app.errors import InvalidParameter, MalformedRequest, MethodNotAllowed, NotFound, TopkError

MEDIA_TYPE = "application/problem+json"


def problem(error: TopkError, request_id: str) -> dict[str, Any]:
    """The body of an error's answer."""
    return {
        "type": f"urn:topk:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        **error.members,
    }


def respond(error: TopkError, request_id: str, headers: dict[str, str] | None = None) -> Response:
    """An error as a response."""
    return Response(
        orjson.dumps(problem(error, request_id)),
        status_code=error.status,
        headers={**error.headers, **(headers or {})},
        media_type=MEDIA_TYPE,
    )


async def on_topk_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TopkError)
    exchange = Exchange.of(request.scope)
    exchange.code = error.code
    return respond(error, exchange.request_id)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework raises itself."""
    assert isinstance(error, HTTPException)
    ours: TopkError
    match error.status_code:
        case 404:
            ours = NotFound(f"nothing is served at {request.url.path}")
        case 405:
            ours = MethodNotAllowed(f"{request.url.path} does not take {request.method}")
        case _:
            ours = MalformedRequest(str(error.detail))
    exchange = Exchange.of(request.scope)
    exchange.code = ours.code
    return respond(ours, exchange.request_id, dict(error.headers or {}))


async def on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return await on_topk_error(request, InvalidParameter(f"{first['loc'][-1]}: {first['msg']}"))
