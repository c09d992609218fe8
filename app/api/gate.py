"""The checks before a body is read: its headers, then the API key. FastAPI runs them as dependencies of the routes.

Each check is one dependency without others, because FastAPI takes longer to resolve a dependency than a check takes.
"""

from fastapi import Depends, Request, params
from fastapi.security.utils import get_authorization_scheme_param

from app.api import address
from app.api.exchange import Exchange
from app.api.forms import Form
from app.api.service import Service

_ONLY = "Required only if the server has API keys configured."
KEY_SCHEMES = {
    "HTTPBearer": {"type": "http", "scheme": "bearer", "description": _ONLY},
    "APIKeyHeader": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": _ONLY},
}
"""The security schemes of OpenAPI, either of which a route accepts."""


def gate(form: Form) -> list[params.Depends]:
    """The dependencies of a route that accepts uploads."""

    async def check(request: Request) -> None:
        Service.of(request).uploads.check_headers(request, form)
        await require_key(request)

    return [Depends(check)]


async def require_key(request: Request) -> None:
    """Check the API key, and record the caller. Raises Unauthorized."""
    scheme, credentials = get_authorization_scheme_param(request.headers.get("authorization"))
    bearer = credentials if scheme.lower() == "bearer" else None
    key = Service.of(request).keys.check(bearer or None, request.headers.get("x-api-key"))
    Exchange.of(request.scope).caller = key or address.caller(request.scope)
