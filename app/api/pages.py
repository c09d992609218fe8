"""The page at ``/`` and the documentation at ``/docs``: all assets served from here, all URLs relative."""

import base64
import hashlib
import os
import re
from functools import cache
from os import PathLike
from pathlib import Path

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.datastructures import Headers
from starlette.responses import FileResponse, HTMLResponse, Response
from starlette.staticfiles import NotModifiedResponse, StaticFiles
from starlette.types import Scope

router = APIRouter()

_PAGE = ("app", "web")
_OURS = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
    f" require-trusted-types-for 'script'; trusted-types 'none'; {_OURS}"
)
_CAMERA_ONLY = "camera=(self), microphone=(), geolocation=(), display-capture=()"
_ASK_AGAIN = {"Cache-Control": "no-cache"}  # so that a page never meets the script of an older version
_DESCRIBED = {
    "description": "The page",
    "content": {"text/html": {"schema": {"type": "string"}, "example": "<!doctype html>..."}},
}


@router.get("/", tags=["page"], summary="The page", response_class=HTMLResponse, responses={200: _DESCRIBED})
async def index(request: Request) -> Response:
    """The page: drop a photograph, see its classes."""
    page = await _Fresh(packages=[_PAGE]).get_response("index.html", request.scope)
    # also on a 304, whose headers replace those that the browser has stored
    page.headers.update({"Content-Security-Policy": _PAGE_POLICY, "Permissions-Policy": _CAMERA_ONLY})
    return page


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Swagger UI from the package ``fastapi-offline``, without its CDN."""
    page, policy = _docs()
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


@cache
def _docs() -> tuple[bytes, str]:
    """The page, and the policy that allows its one script."""
    page = get_swagger_ui_html(
        openapi_url="openapi.json",
        title="topk",
        swagger_js_url="docs-assets/swagger-ui-bundle.js",
        swagger_css_url="docs-assets/swagger-ui.css",
        swagger_favicon_url="web/icon.svg",
        swagger_ui_parameters={"tryItOutEnabled": True, "docExpansion": "list"},
    )
    body = bytes(page.body)
    [script] = re.findall(rb"<script>(.*?)</script>", body, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script).digest()).decode()
    return body, (
        f"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline';"
        f" script-src 'self' 'sha256-{digest}'; {_OURS}"
    )


class _Fresh(StaticFiles):
    """Files that a browser asks about again; what has not changed costs a 304.

    Their ETag is that of their content: the time of an installed file says little about it.
    """

    def file_response(
        self, full_path: str | PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = FileResponse(full_path, status_code=status_code, stat_result=stat_result)
        del response.headers["last-modified"]
        response.headers["ETag"] = _etag(os.fspath(full_path), stat_result.st_mtime_ns, stat_result.st_size)
        response.headers.update(_ASK_AGAIN)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


@cache
def _etag(path: str, *_version: int) -> str:
    return f'"{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]}"'


def mount_assets(app: FastAPI) -> None:
    """The page's own files and Swagger UI's."""
    app.mount("/web", _Fresh(packages=[_PAGE]), name="web")
    app.mount("/docs-assets", _Fresh(packages=[("fastapi_offline", "static")]), name="docs-assets")
