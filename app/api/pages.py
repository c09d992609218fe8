"""The page at ``/`` and the documentation at ``/docs``, with local assets and relative URLs."""

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

TAG = "page"
router = APIRouter(tags=[TAG])

_PAGE = ("app", "web")
_COMMON = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; object-src 'none'"
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self';"
    f" require-trusted-types-for 'script'; trusted-types 'none'; {_COMMON}"
)
_CAMERA_ONLY = "camera=(self), microphone=(), geolocation=(), display-capture=()"
_REVALIDATE = {"Cache-Control": "no-cache"}  # so that a page never loads the script of an older version
_DESCRIBED = {
    "description": "The page",
    "content": {"text/html": {"schema": {"type": "string"}, "example": "<!doctype html>..."}},
}


@router.get("/", summary="The page", response_class=HTMLResponse, responses={200: _DESCRIBED})
async def index(request: Request) -> Response:
    """A web page that classifies photographs."""
    page = await _Revalidated(packages=[_PAGE]).get_response("index.html", request.scope)
    # Also on a 304, whose headers replace those in the browser's cache.
    page.headers.update({"Content-Security-Policy": _PAGE_POLICY, "Permissions-Policy": _CAMERA_ONLY})
    return page


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """Swagger UI with the assets of the package ``fastapi-offline`` instead of a CDN."""
    page, policy = _docs()
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


@cache
def _docs() -> tuple[bytes, str]:
    """The page, and the policy that allows its only script."""
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
        f" script-src 'self' 'sha256-{digest}'; {_COMMON}"
    )


class _Revalidated(StaticFiles):
    """Files that a browser revalidates every time; an unchanged file costs a 304.

    The ETag is a digest of the content, because installation changes a file's time.
    """

    def file_response(
        self, full_path: str | PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = FileResponse(full_path, status_code=status_code, stat_result=stat_result)
        del response.headers["last-modified"]
        response.headers["ETag"] = _etag(os.fspath(full_path), stat_result.st_mtime_ns, stat_result.st_size)
        response.headers.update(_REVALIDATE)
        if self.is_not_modified(response.headers, Headers(scope=scope)):
            return NotModifiedResponse(response.headers)
        return response


@cache
def _etag(path: str, *_version: int) -> str:
    return f'"{hashlib.sha256(Path(path).read_bytes()).hexdigest()[:32]}"'


def mount_assets(app: FastAPI) -> None:
    """Serve the files of the page and of Swagger UI."""
    app.mount("/web", _Revalidated(packages=[_PAGE]), name="web")
    app.mount("/docs-assets", _Revalidated(packages=[("fastapi_offline", "static")]), name="docs-assets")
