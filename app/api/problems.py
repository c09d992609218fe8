"""Errors to answers: ``application/problem+json`` (RFC 9457), or the shape of the protocol that is being spoken."""

from collections.abc import Callable
from typing import Any

import orjson
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

from app.api.exchange import Exchange
from app.errors import InvalidParameter, MalformedRequest, MethodNotAllowed, NotFound, TopkError

MEDIA_TYPE = "application/problem+json"

Shape = Callable[[TopkError], dict[str, Any]]
"""An error as the JSON body that a protocol's clients read."""


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


def respond(error: TopkError, scope: Scope, headers: dict[str, str] | None = None) -> Response:
    """An error as the response to the request of this scope."""
    exchange = Exchange.of(scope)
    exchange.code = error.code
    shapes: dict[str, Shape] = scope["app"].state.shapes
    shape = shapes.get(exchange.spoken or exchange.protocol(scope))
    return Response(
        orjson.dumps(shape(error) if shape else problem(error, exchange.request_id)),
        status_code=error.status,
        headers={**error.headers, **(headers or {})},
        media_type="application/json" if shape else MEDIA_TYPE,
    )


async def on_topk_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, TopkError)
    return respond(error, request.scope)


async def on_http_exception(request: Request, error: Exception) -> Response:
    """What the framework raises itself."""
    assert isinstance(error, HTTPException)
    ours: TopkError
    match error.status_code:
        case 404:
            Exchange.of(request.scope).spoken = below(request.scope)
            ours = NotFound(f"nothing is served at {request.url.path}")
        case 405:
            ours = MethodNotAllowed(f"{request.url.path} does not take {request.method}")
        case _:
            ours = MalformedRequest(str(error.detail))
    headers = dict(error.headers or {})
    if error.status_code == 405:
        methods = _methods(request) | {headers["Allow"]}
        headers["Allow"] = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
    return respond(ours, request.scope, headers)


def below(scope: Scope) -> str | None:
    """The protocol below whose prefix a path is, where no route tells it."""
    path = scope["path"].removeprefix(scope["root_path"])
    prefixes: dict[str, str] = scope["app"].state.prefixes
    return next((protocol for prefix, protocol in prefixes.items() if path.startswith(prefix)), None)


def _methods(request: Request) -> set[str]:
    """What is described at this path, by all of its routes: the framework names those of the first one alone."""
    path = getattr(request.scope.get("route"), "path_format", None)
    return {method.upper() for method in request.app.openapi()["paths"].get(path, ())}


async def on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return await on_topk_error(request, InvalidParameter(f"{first['loc'][-1]}: {first['msg']}"))
