"""Errors to responses: ``application/problem+json`` (RFC 9457), or the error body of the request's protocol."""

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response
from starlette.types import Scope

from app.api.exchange import Exchange
from app.api.options import invalid
from app.api.service import Service
from app.errors import MalformedRequest, MethodNotAllowed, NotFound, TopkError

MEDIA_TYPE = "application/problem+json"


def problem(error: TopkError, request_id: str) -> dict[str, object]:
    """The problem document of an error."""
    return {
        "type": f"urn:topk:problem:{error.code}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        **error.members,
    }


def respond(error: TopkError, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    """The response to the request of this scope."""
    exchange = Exchange.of(scope)
    exchange.code, exchange.retry_after_s = error.code, error.retry_after_s
    protocol = exchange.body_protocol or exchange.protocol(scope)
    error_body = Service.of(HTTPConnection(scope)).protocols.error_bodies.get(protocol)
    return Response(
        orjson.dumps(error_body(error) if error_body else problem(error, exchange.request_id)),
        status_code=error.status,
        headers={**error.headers, **(headers or {})},
        media_type="application/json" if error_body else MEDIA_TYPE,
    )


async def on_topk_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TopkError)
    error.__traceback__ = None  # its frames hold the images, and the response may be delayed
    return respond(error, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Convert an error that the framework raises."""
    assert isinstance(error, HTTPException)
    converted: TopkError
    match error.status_code:
        case 404:
            Exchange.of(request.scope).body_protocol = protocol_below(request.scope)
            converted = NotFound(f"there is no route {request.url.path}")
        case 405:
            converted = MethodNotAllowed(f"{request.url.path} does not support {request.method}")
        case _:
            converted = MalformedRequest(str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        methods = _methods(request) | {headers["Allow"]}
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return respond(converted, request.scope, headers)


def protocol_below(scope: Scope) -> str | None:
    """The protocol whose prefix the path begins with, for paths without a route."""
    path = scope["path"].removeprefix(scope["root_path"])
    prefixes = Service.of(HTTPConnection(scope)).protocols.prefixes
    return next((protocol for prefix, protocol in prefixes.items() if path.startswith(prefix)), None)


def _methods(request: Request) -> set[str]:
    """The methods of all routes of this path: the framework names those of the first route only."""
    path = getattr(request.scope.get("route"), "path_format", None)
    return {method.upper() for method in request.app.openapi()["paths"].get(path, ())}


async def on_validation_error(request: Request, error: Exception) -> Response:
    """Convert an invalid parameter that FastAPI reports."""
    assert isinstance(error, RequestValidationError)
    return await on_topk_error(request, invalid(error.errors()[0]))
