"""The checks before a body is read: its headers, then the API key. FastAPI runs them as dependencies of the routes."""

from collections.abc import Awaitable, Callable
from typing import Annotated

from fastapi import Depends, Request, Security, params
from fastapi.security import APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer

from app.api import address
from app.api.exchange import Exchange
from app.api.forms import Form
from app.api.service import Service

_ONLY = "Required only if the server has API keys configured."
_bearer = HTTPBearer(auto_error=False, description=_ONLY)
_header = APIKeyHeader(name="X-API-Key", auto_error=False, description=_ONLY)


def gate(form: Form) -> list[params.Depends]:
    """The dependencies of a route that accepts uploads."""
    return [Depends(_check_headers(form)), Depends(require_key)]


async def require_key(
    request: Request,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
    header: Annotated[str | None, Security(_header)],
) -> None:
    """Check the API key, and record the caller. Raises Unauthorized."""
    key = Service.of(request).keys.check(bearer.credentials if bearer else None, header)
    Exchange.of(request.scope).caller = key or address.caller(request.scope)


def _check_headers(form: Form) -> Callable[[Request], Awaitable[None]]:
    async def check(request: Request) -> None:
        Service.of(request).uploads.check_headers(request, form)

    return check
