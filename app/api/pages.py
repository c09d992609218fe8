"""The page at ``/`` and the documentation at ``/docs``: all assets served from here, all URLs relative."""

import base64
import hashlib
import re
from importlib import resources
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import HTMLResponse, Response
from starlette.staticfiles import StaticFiles

router = APIRouter()


_OURS = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_PAGE_POLICY = f"default-src 'self'; img-src 'self' blob: data:; {_OURS}"
_PAGE = {
    "description": "The page",
    "content": {"text/html": {"schema": {"type": "string"}, "example": "<!doctype html>..."}},
}
_ASK_AGAIN = {"Cache-Control": "no-cache"}  # so that a page never meets the script of an older version


@router.head("/", include_in_schema=False)
@router.get("/", tags=["page"], summary="The page", response_class=HTMLResponse, responses={200: _PAGE})
async def index() -> Response:
    """The page: drop a photograph, see its classes."""
    page = (resources.files("app") / "web" / "index.html").read_bytes()
    headers = _ASK_AGAIN | {"Content-Security-Policy": _PAGE_POLICY}
    return Response(page, headers=headers, media_type="text/html; charset=utf-8")


@router.api_route("/docs", methods=["GET", "HEAD"], include_in_schema=False)
async def docs(request: Request) -> Response:
    """Swagger UI from the package ``fastapi-offline``, without its CDN."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="topk",
        swagger_js_url="docs-assets/swagger-ui-bundle.js",
        swagger_css_url="docs-assets/swagger-ui.css",
        swagger_favicon_url="web/icon.svg",
        swagger_ui_parameters={"tryItOutEnabled": True, "docExpansion": "list"},
    )
    [script] = re.findall(rb"<script>(.*?)</script>", bytes(page.body), re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    page.headers["Content-Security-Policy"] = (
        f"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline';"
        f" script-src 'self' 'sha256-{digest}'; {_OURS}"
    )
    return page


class _Fresh(StaticFiles):
    """Files that a browser asks about again; what has not changed costs a 304."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers.update(_ASK_AGAIN)
        return response


def mount_assets(app: FastAPI) -> None:
    """The page's own files and Swagger UI's."""
    app.mount("/web", _Fresh(packages=[("app", "web")]), name="web")
    app.mount("/docs-assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
