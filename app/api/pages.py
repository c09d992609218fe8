"""The page at ``/`` and the documentation at ``/docs``: all assets served from here, all URLs relative."""

from importlib import resources

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.responses import Response
from starlette.staticfiles import StaticFiles

router = APIRouter(include_in_schema=False)


@router.get("/")
async def index() -> Response:
    """The page: drop a photograph, see its classes."""
    page = (resources.files("app") / "web" / "index.html").read_bytes()
    return Response(page, media_type="text/html; charset=utf-8")


@router.get("/docs")
async def docs(request: Request) -> Response:
    """Swagger UI from the package ``fastapi-offline``, without its CDN."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="topk",
        swagger_js_url="docs-assets/swagger-ui-bundle.js",
        swagger_css_url="docs-assets/swagger-ui.css",
        swagger_favicon_url="web/icon.svg",
        swagger_ui_parameters={"tryItOutEnabled": True, "docExpansion": "list"},
    )


def mount_assets(app: FastAPI) -> None:
    """The page's own files and Swagger UI's."""
    app.mount("/web", StaticFiles(packages=[("app", "web")]), name="web")
    app.mount("/docs-assets", StaticFiles(packages=[("fastapi_offline", "static")]), name="docs-assets")
